"""Who observed: this device (TID 1004)."""

from __future__ import annotations

from highdicom.sr import CodedConcept, DeviceObserverIdentifyingAttributes, ObserverContext

from hipscore.reporting import ReportContext, codes, source, uids


def device(context: ReportContext) -> ObserverContext:
    """The observer context of everything this installation says."""
    return ObserverContext(
        CodedConcept("121007", "DCM", "Device"),
        DeviceObserverIdentifyingAttributes(
            uid=uids.derive("hipscore", "device", context.device_name, context.device_serial),
            name=codes.plain(context.device_name),
            manufacturer_name=source.MANUFACTURER,
            model_name=f"{source.MODEL} {context.software_version}",
            serial_number=context.device_serial,
        ),
    )
