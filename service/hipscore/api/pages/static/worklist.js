// The worklist by keyboard, and kept fresh without losing one's place.

const table = document.getElementById("worklist");
const news = document.getElementById("news");
const links = () => [...table.querySelectorAll("tbody tr[data-uid] th a")];
const typing = (target) => target.closest?.("input, select, textarea, button") !== null;

function move(step) {
  const all = links();
  if (!all.length) return;
  const at = all.indexOf(document.activeElement);
  const next = at < 0 ? (step > 0 ? 0 : all.length - 1) : at + step;
  all[Math.min(Math.max(next, 0), all.length - 1)].focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.key === "Escape" && typing(event.target)) {
    event.target.blur();
    return;
  }
  if (typing(event.target)) return;
  const steps = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 };
  if (event.key in steps) {
    event.preventDefault();
    move(steps[event.key]);
  } else if (event.key === "/") {
    event.preventDefault();
    document.getElementById("number").focus();
  } else if (event.key === "n") {
    document.getElementById("next")?.click();
  }
});

// a line is opened by a click anywhere on it, but text in it can still be selected
table.addEventListener("click", (event) => {
  const row = event.target.closest("tr[data-uid]");
  if (row && !event.target.closest("a") && !String(getSelection())) {
    row.querySelector("th a").click();
  }
});

// an address without the fields that were left empty
document.getElementById("filters").addEventListener("submit", (event) => {
  for (const field of event.target.elements) {
    if (field.name && !field.value) field.disabled = true;
  }
});
addEventListener("pageshow", () => {
  for (const field of document.getElementById("filters").elements) field.disabled = false;
});

const rows = (body) => new Map(
  [...body.querySelectorAll("tr[data-uid]")].map((row) => [row.dataset.uid, row.textContent]),
);

function replace(fresh) {
  const old = table.tBodies[0];
  const before = rows(old);
  const after = rows(fresh.querySelector("#worklist tbody"));
  const added = [...after.keys()].filter((uid) => !before.has(uid)).length;
  const changed = [...after].filter(([uid, text]) => before.has(uid) && before.get(uid) !== text).length;
  if (!added && !changed && before.size === after.size) return;
  const focused = document.activeElement?.closest?.("#worklist tr[data-uid]")?.dataset.uid;
  const top = focused && document.activeElement.getBoundingClientRect().top;
  old.replaceWith(document.adoptNode(fresh.querySelector("#worklist tbody")));
  table.caption.replaceWith(document.adoptNode(fresh.querySelector("#worklist caption")));
  document.getElementById("pager").replaceWith(document.adoptNode(fresh.getElementById("pager")));
  if (focused) {
    const again = links().find((link) => link.closest("tr").dataset.uid === focused);
    if (again) {
      again.focus({ preventScroll: true });
      scrollBy(0, again.getBoundingClientRect().top - top);
    }
  }
  const parts = [];
  if (added) parts.push(`${added} new ${added === 1 ? "study" : "studies"}`);
  if (changed) parts.push(`${changed} changed`);
  news.textContent = parts.length ? `Refreshed: ${parts.join(", ")}.` : "";
}

async function refresh() {
  if (document.hidden || String(getSelection())) return;
  try {
    const answer = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (!answer.ok || !fresh.getElementById("worklist")) throw new Error(String(answer.status));
    replace(fresh);
  } catch {
    news.textContent = "This list could not be refreshed and may be old; load the page again.";
  }
}

const seconds = Number(table.dataset.refresh);
if (seconds) {
  setInterval(refresh, seconds * 1000);
  document.addEventListener("visibilitychange", refresh);
  table.addEventListener("refresh", refresh);
}
