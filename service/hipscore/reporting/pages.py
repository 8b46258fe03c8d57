"""The report as PDF pages (A4), laid out with ReportLab. Pure: the same result, the same bytes."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any
from xml.sax.saxutils import escape

from PIL import Image
from pydicom.dataset import Dataset
from pydicom.valuerep import PersonName
from reportlab import rl_config
from reportlab.graphics.shapes import Drawing, Line, Rect, String
from reportlab.lib.colors import Color, black
from reportlab.lib.pagesizes import A4
from reportlab.lib.styles import ParagraphStyle
from reportlab.lib.units import mm
from reportlab.pdfbase import pdfmetrics
from reportlab.pdfbase.pdfdoc import PDFDictionary, PDFName, PDFStream
from reportlab.pdfbase.ttfonts import TTFont
from reportlab.pdfgen.canvas import Canvas
from reportlab.platypus import (
    Flowable,
    KeepTogether,
    Paragraph,
    SimpleDocTemplate,
    Spacer,
    Table,
)

from hipscore.domain import RESEARCH_USE, Channel, HipFindings, Side
from hipscore.reporting import assessed, captures, codes, png, wording

#: binary streams, which a DICOM element can hold: in Base 85 they take longer than all the rest
rl_config.useA85 = 0

_PLAIN, _BOLD = "Vera", "VeraBd"  # come with ReportLab; Latin letters
_MARGIN = 16 * mm
_PADDING = 6  # of ReportLab's frame, points
_WIDTH = A4[0] - 2 * _MARGIN - 2 * _PADDING
_LEFT = _MARGIN + _PADDING
_GREY = Color(0.42, 0.42, 0.45)
_LIGHT = Color(0.93, 0.93, 0.94)
_AMBER = Color(0.62, 0.36, 0.0)
_RULE = Color(0.75, 0.75, 0.77)
_TILE = 40 * mm
#: what stands for a character the font does not have
_MISSING = "?"
_LATIN = "\u024f"
_INCOMPLETE = "? stands for a character this page cannot show; the DICOM header has it whole."

_TEXT = ParagraphStyle("text", fontName=_PLAIN, fontSize=8.5, leading=11.5)
_SMALL = ParagraphStyle("small", parent=_TEXT, fontSize=7.5, leading=10, textColor=_GREY)
_WARNING = ParagraphStyle("warning", parent=_TEXT, textColor=_AMBER)
_TITLE = ParagraphStyle("title", parent=_TEXT, fontName=_BOLD, fontSize=14, leading=17)
_HEADING = ParagraphStyle(
    "heading", parent=_TEXT, fontName=_BOLD, fontSize=10, leading=13, spaceBefore=7, spaceAfter=2
)


def render(scene: captures.Scene, *, title: str) -> bytes:
    """Lay out the report of one series.

    Parameters
    ----------
    scene
        What is reported. Its header says whose it is: the page does too.
    title
        Title of the document, without anything that identifies the patient.

    Returns
    -------
    bytes
        PDF 1.4, its letters embedded.
    """
    _letters()
    buffer = BytesIO()
    document = SimpleDocTemplate(
        buffer,
        pagesize=A4,
        leftMargin=_MARGIN,
        rightMargin=_MARGIN,
        topMargin=15 * mm,
        bottomMargin=12 * mm,
        title=title,
        author="hipscore",
        subject=RESEARCH_USE,
        invariant=1,
    )
    frame = _Frame(scene)
    document.build(_story(scene), onFirstPage=frame, onLaterPages=frame)
    return buffer.getvalue()


@cache
def _letters() -> frozenset[int]:
    """Register the fonts; returns the characters that both have."""
    fonts = [TTFont(name, f"{name}.ttf") for name in (_PLAIN, _BOLD)]
    for font in fonts:
        pdfmetrics.registerFont(font)
    return frozenset.intersection(*(frozenset(font.face.charToGlyph) for font in fonts))


def shown(text: str) -> str:
    """The text in characters the pages have; a letter without its accent rather than none."""
    return "".join(_shown(character) for character in text if character.isprintable())


def _shown(character: str) -> str:
    if _has(character):
        return character
    plain = unicodedata.normalize("NFKD", character)
    base = "".join(each for each in plain if not unicodedata.combining(each))
    return base if base and all(map(_has, base)) else _MISSING


def _has(character: str) -> bool:
    # the few Greek letters of the font are meant for formulas: half a name would be worse
    foreign = character.isalpha() and character > _LATIN
    return ord(character) in _letters() and not foreign


@dataclass(frozen=True, slots=True)
class _Frame:
    """What stands on every page: the banner above, where it comes from and its number below."""

    scene: captures.Scene

    def __call__(self, canvas: Canvas, document: Any) -> None:
        canvas.saveState()
        top = A4[1] - 12 * mm
        canvas.setFillColor(Color(1.0, 0.94, 0.80))
        canvas.rect(_LEFT, top - 2.2 * mm, _WIDTH, 6.4 * mm, stroke=0, fill=1)
        canvas.setFillColor(_AMBER)
        canvas.setFont(_BOLD, 9)
        canvas.drawCentredString(A4[0] / 2, top, f"{RESEARCH_USE}. Made by a computer, unread.")
        canvas.setFillColor(_GREY)
        canvas.setFont(_PLAIN, 7)
        identifier = shown(_text(self.scene.header, "PatientID"))
        left = f"{wording.origin(self.scene.header)}; ID {identifier or 'unknown'}"
        canvas.drawString(_LEFT, 9 * mm, left[:70])
        canvas.drawRightString(
            _LEFT + _WIDTH,
            9 * mm,
            f"{shown(wording.provenance(self.scene.card, self.scene.context))[:85]}, "
            f"page {document.page}",
        )
        canvas.restoreState()


def _story(scene: captures.Scene) -> list[Flowable]:
    findings = scene.findings
    score, note = wording.headline(findings)
    assessment = assessed(findings, scene.card, scene.context)
    story: list[Flowable] = [
        Paragraph("MRI of the hips: automatic inflammation score", _TITLE),
        Spacer(0, 4),
        *_patient(scene.header),
        Spacer(0, 7),
        Paragraph(f"<font size=14 name={_BOLD}>{score}</font>&nbsp;&nbsp; {escape(note)}", _TEXT),
        Spacer(0, 6),
        *_paragraphs(wording.unscored(findings), _WARNING),
    ]
    if assessment.priority.reason is not None:
        story += _paragraphs([f"Flagged: {assessment.priority.reason}."], _WARNING)
    if findings.hips:
        story += [Spacer(0, 3), _scores(wording.scores(findings))]
    if assessment.change is not None:
        story.append(
            KeepTogether(
                [
                    Paragraph("Change since the earlier score", _HEADING),
                    *_paragraphs(wording.changes(assessment.change), _TEXT),
                    *_paragraphs(wording.caveats(assessment.change), _WARNING),
                ]
            )
        )
    if findings.quality:
        texts = [f"{remark.text}." for remark in findings.quality]
        story += [Paragraph("Quality", _HEADING), *_paragraphs(texts, _WARNING)]
    story += _pictures(scene)
    if findings.scored:
        chart = [Paragraph("Ratio of each slice, front to back", _HEADING), _chart(scene)]
        story.append(KeepTogether(chart))
    story += _about(scene)
    return story


def _patient(header: Dataset) -> list[Flowable]:
    """Whose study it is: this is a document of the patient's study."""
    name, referring = (
        readable(header.get(keyword)) for keyword in ("PatientName", "ReferringPhysicianName")
    )
    cut = (
        name,
        referring,
        *(_text(header, keyword) for keyword in ("PatientID", "StudyDescription")),
    )
    whole = all(shown(each).count(_MISSING) == each.count(_MISSING) for each in cut)
    identifier = shown(_text(header, "PatientID"))
    issuer = shown(_text(header, "IssuerOfPatientID"))
    cells = [
        ("Name", shown(name), "Study date", wording.day(_text(header, "StudyDate"))),
        ("ID", f"{identifier} ({issuer})" if issuer else identifier, "Accession number",
         shown(_text(header, "AccessionNumber"))),
        ("Birth date", wording.day(_text(header, "PatientBirthDate")), "Study",
         shown(_text(header, "StudyDescription"))),
        ("Sex", _text(header, "PatientSex"), "Referring physician", shown(referring)),
    ]  # fmt: skip
    rows = [
        [
            Paragraph(escape(cell or "unknown"), _SMALL if index % 2 == 0 else _TEXT)
            for index, cell in enumerate(line)
        ]
        for line in cells
    ]
    widths = (20 * mm, _WIDTH / 2 - 20 * mm, 33 * mm, _WIDTH / 2 - 33 * mm)
    table = Table(rows, widths, style=[*_TIGHT, ("BACKGROUND", (0, 0), (-1, -1), _LIGHT)])
    return [table, *([] if whole else [Paragraph(_INCOMPLETE, _SMALL)])]


_TIGHT: list[tuple[Any, ...]] = [
    ("TOPPADDING", (0, 0), (-1, -1), 1.2),
    ("BOTTOMPADDING", (0, 0), (-1, -1), 1.8),
    ("VALIGN", (0, 0), (-1, -1), "TOP"),
]


def readable(value: object) -> str:
    """The alphabetic group of a name (PS3.5 6.2.1.1), or another one where that is empty."""
    groups = str(value or "").split("=")
    text = next((group for group in groups if group.strip("^ ")), "")
    name = PersonName(text)
    given = " ".join(filter(None, (name.name_prefix, name.given_name, name.middle_name)))
    parts = [", ".join(filter(None, (name.family_name, given))), name.name_suffix]
    return " ".join(filter(None, parts))


def _text(header: Dataset, keyword: str) -> str:
    return str(header.get(keyword, "") or "").strip()


def _paragraphs(texts: Iterable[str], style: ParagraphStyle) -> list[Flowable]:
    return [Paragraph(escape(shown(text)), style) for text in texts]


def _scores(rows: Sequence[wording.Row]) -> Table:
    head = ["", "right hip", "left hip", "patient"]
    body = [[shown(cell).replace("  of", "   of") for cell in row] for row in rows]
    style: list[tuple[Any, ...]] = [
        *_TIGHT,
        ("FONT", (0, 0), (-1, -1), _PLAIN, 8.5),
        ("FONT", (0, 1), (-1, 1), _BOLD, 8.5),
        ("TEXTCOLOR", (0, 0), (-1, 0), _GREY),
        ("ALIGN", (1, 0), (-1, -1), "RIGHT"),
        ("LINEBELOW", (0, 0), (-1, -1), 0.3, _RULE),
    ]
    return Table([head, *body], (70 * mm, 30 * mm, 30 * mm, 30 * mm), style=style, hAlign="LEFT")


def _pictures(scene: captures.Scene) -> list[Flowable]:
    tiles = captures.tiles(scene, 300)
    if not tiles:
        return []
    scored = any(hip.scored for hip in scene.findings.hips)
    title = "The slices with the highest ratios" if scored else "Slices, front to back"
    pictures = [_Tile(tile, number) for number, (tile, _) in enumerate(tiles)]
    captions = [Paragraph(escape(caption), _SMALL) for _, caption in tiles]
    table = Table(
        [pictures, captions],
        [_TILE + 2.6 * mm] * len(tiles),
        style=[("LEFTPADDING", (0, 0), (-1, -1), 0), ("TOPPADDING", (0, 0), (-1, -1), 1)],
        hAlign="LEFT",
    )
    legend = ", ".join(
        f'<font color="{_hex(channel)}">\u25a0</font> {codes.STRUCTURES[channel].noun}'
        if 0x25A0 in _letters()
        else f'<font color="{_hex(channel)}"><b>{codes.STRUCTURES[channel].noun}</b></font>'
        for channel in Channel
    )
    sides = "The patient's right is on the left of every picture."
    shown_below = Paragraph(f"Outlines: {legend}. {sides}" if scored else sides, _SMALL)
    return [KeepTogether([Paragraph(title, _HEADING), table, shown_below])]


class _Tile(Flowable):
    """A picture in memory. ReportLab's own wants a file, and takes long to compress it."""

    def __init__(self, tile: Image.Image, number: int) -> None:
        super().__init__()
        self.width = self.height = _TILE
        self.tile = tile
        self.name = f"tile{number}"

    def draw(self) -> None:
        columns, rows = self.tile.size
        filters = {"Predictor": 15, "Colors": 3, "Columns": columns}
        entries = {
            "Type": PDFName("XObject"),
            "Subtype": PDFName("Image"),
            "Width": columns,
            "Height": rows,
            "BitsPerComponent": 8,
            "ColorSpace": PDFName("DeviceRGB"),
            "Filter": PDFName("FlateDecode"),
            "DecodeParms": PDFDictionary(filters),
        }
        stream = PDFStream(PDFDictionary(entries), png.deflated(self.tile))
        vars(self.canv)["_doc"].addForm(self.name, stream)  # as drawImage does
        self.canv.scale(_TILE, _TILE)
        self.canv.doForm(self.name)


def _chart(scene: captures.Scene) -> Drawing:
    """Bars of the ratio per slice, edema and synovitis apart, one panel for each hip."""
    hips = [hip for hip in scene.findings.hips if hip.scored]
    top = max((item.ratio for hip in hips for item in hip.slices), default=0.0) or 1.0
    width, height = _WIDTH / 2 - 4 * mm, 21 * mm
    drawing = Drawing(_WIDTH, height + 7 * mm)
    for hip in hips:
        left = 0.0 if hip.hip.side is Side.RIGHT else _WIDTH / 2 + 4 * mm
        _panel(drawing, hip, left=left, width=width, height=height, top=top)
    return drawing


def _panel(
    drawing: Drawing, hip: HipFindings, *, left: float, width: float, height: float, top: float
) -> None:
    base, axis = 6.5 * mm, left + 8 * mm
    scale = (height - 5 * mm) / top
    drawing.add(Line(axis, base, left + width, base, strokeColor=_GREY, strokeWidth=0.5))
    label = f"{hip.hip.side.value.capitalize()} hip"
    drawing.add(String(axis, base + height - 2 * mm, label, fontName=_BOLD, fontSize=7.5))
    for value in (top / 2, top):
        y = base + value * scale
        drawing.add(Line(axis, y, left + width, y, strokeColor=_RULE, strokeWidth=0.3))
        text = f"{value:.2f}"
        drawing.add(String(axis - 2, y - 2, text, fontName=_PLAIN, fontSize=6, textAnchor="end"))
    step = (width - 8 * mm) / max(len(hip.slices), 5)
    for number, item in enumerate(hip.slices):
        x, y = axis + (number + 0.15) * step, base
        for channel, ratio in (
            (Channel.BME, item.bme_ratio),
            (Channel.SYNOVITIS, item.synovitis_ratio),
        ):
            bar = Rect(x, y, 0.7 * step, ratio * scale)
            bar.fillColor, bar.strokeColor = _colour(channel), None
            drawing.add(bar)
            y += ratio * scale
        drawing.add(
            String(
                x + 0.35 * step,
                base - 3 * mm,
                str(item.source.frame_number or item.source.instance_number),
                fontName=_PLAIN,
                fontSize=6,
                textAnchor="middle",
                fillColor=black,
            )
        )
    drawing.add(
        String(axis, base - 6 * mm, "image number", fontName=_PLAIN, fontSize=6, fillColor=_GREY)
    )


def _about(scene: captures.Scene) -> list[Flowable]:
    card = scene.card
    trained = f"It was trained on {card.trained_on}. " if card.trained_on else ""
    model = (
        f"Model: {card.name or card.id}, {card.id} {card.version}, SHA-256 {card.sha256[:16]}. "
        f"{trained}What was measured is in CARD.md of the bundle."
    )
    return [
        KeepTogether(
            [
                Paragraph("What this is", _HEADING),
                *_paragraphs([wording.MEANING, model], _SMALL),
            ]
        )
    ]


def _colour(channel: Channel) -> Color:
    red, green, blue = (value / 255 for value in codes.STRUCTURES[channel].rgb)
    return Color(red, green, blue)


def _hex(channel: Channel) -> str:
    return "#{:02x}{:02x}{:02x}".format(*codes.STRUCTURES[channel].rgb)
