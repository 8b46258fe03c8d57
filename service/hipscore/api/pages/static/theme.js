// Dark by default: a white page blinds whoever reads images. Before the first paint.
(() => {
  const themes = ["dark", "light", "auto"];
  const read = () => {
    try {
      const kept = localStorage.getItem("hipscore-theme");
      return themes.includes(kept) ? kept : "dark";
    } catch {
      return "dark"; // storage is forbidden here
    }
  };
  const apply = (theme) => { document.documentElement.dataset.theme = theme; };
  apply(read());
  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    if (!button) return;
    const label = () => { button.textContent = `Theme: ${document.documentElement.dataset.theme}`; };
    button.hidden = false;
    label();
    button.addEventListener("click", () => {
      const next = themes[(themes.indexOf(read()) + 1) % themes.length];
      try { localStorage.setItem("hipscore-theme", next); } catch { /* only for this page then */ }
      apply(next);
      label();
    });
  });
})();
