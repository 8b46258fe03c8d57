// The stack of slices: one picture at a time, its outlines over it, its neighbours ready.

const $ = (id) => document.getElementById(id);
const viewer = $("viewer");
const KEPT = 160; // pictures ready at most
const NOTCH = 50; // pixels: a wheel turns by a notch, a trackpad by less at a time

if (viewer) start().catch((error) => { $("where").textContent = error.message; });

async function start() {
  const { base, job, start: first } = viewer.dataset;
  const answer = await fetch(`${base}slices.json?job=${job}`);
  const stack = await answer.json();
  if (!answer.ok) throw new Error(stack.detail);

  const count = stack.slices.length;
  const byKey = new Map(
    stack.slices.map((each) => [`${each.sop_instance_uid}#${each.frame_number ?? ""}`, each.number]),
  );
  const initial = { low: stack.window_low, high: stack.window_high };
  const state = { number: byKey.get(first) ?? Math.ceil(count / 2), ...initial };
  const ready = new Map();

  const stage = $("stage");
  const grey = $("grey");
  const outlines = $("outlines");
  // the true aspect, whole on the screen: a stretched femoral head looks like another disease
  const aspect = stack.width_mm / stack.height_mm;
  stage.style.aspectRatio = String(aspect);
  stage.style.maxWidth = `calc(76vh * ${aspect})`;
  $("west").textContent = stack.left_border;
  $("east").textContent = stack.right_border;
  $("slice").max = count;

  // --- pictures ---------------------------------------------------------------------------

  const window_ = () => (
    state.low === initial.low && state.high === initial.high
      ? "" : `&low=${state.low.toFixed(3)}&high=${state.high.toFixed(3)}`
  );
  const greyUrl = (number) => `${base}slices/${number}.png?job=${job}${window_()}`;
  const outlineUrl = (number) => `${base}slices/${number}/overlay.png?job=${job}&style=${$("style").value}`;
  const outlined = (number) => stack.slices[number - 1].outlined;

  function load(url) {
    let picture = ready.get(url);
    if (picture) ready.delete(url); // to the end: used last
    else {
      const image = new Image();
      image.src = url;
      picture = image.decode().then(() => url);
      picture.catch(() => ready.delete(url));
    }
    ready.set(url, picture);
    if (ready.size > KEPT) ready.delete(ready.keys().next().value);
    return picture;
  }

  let drawn = 0;
  let busy = false;
  let again = false;

  // one at a time, and then the newest wish: dragging must not queue up pictures
  async function draw() {
    if (busy) { again = true; return; }
    busy = true;
    const number = state.number;
    const shows = $("show").checked && outlined(number);
    try {
      const [below, above] = await Promise.all([
        load(greyUrl(number)), shows ? load(outlineUrl(number)) : null,
      ]);
      grey.src = below;
      if (above) outlines.src = above;
      outlines.hidden = !above;
      drawn = number;
      stage.dataset.shown = String(number);
    } catch {
      $("where").textContent = "this picture cannot be loaded; load the page again";
    }
    busy = false;
    if (again) { again = false; draw(); } else prefetch();
  }

  function prefetch() {
    const shows = $("show").checked;
    for (const step of [1, -1, 2, -2, 3, -3]) {
      const number = drawn + step;
      if (number < 1 || number > count) continue;
      load(greyUrl(number)).catch(() => {});
      if (shows && outlined(number)) load(outlineUrl(number)).catch(() => {});
    }
  }

  // --- where we are -----------------------------------------------------------------------

  const slots = new Map([...document.querySelectorAll("#ratios .slot")].map((each) => [each.dataset.key, each]));
  const keyOf = [...byKey.keys()];
  const marks = document.querySelectorAll("#ratios .shown");

  function go(number) {
    state.number = Math.min(Math.max(number, 1), count);
    const { instance_number: instance, frame_number: frame } = stack.slices[state.number - 1];
    $("slice").value = state.number;
    $("slice").setAttribute("aria-valuetext", `slice ${state.number} of ${count}`);
    $("where").textContent = frame
      ? `${state.number} of ${count} (frame ${frame})` : `${state.number} of ${count} (instance ${instance})`;
    const slot = slots.get(keyOf[state.number - 1]);
    for (const mark of marks) {
      mark.setAttribute("x", slot?.getAttribute("x") ?? 0);
      mark.setAttribute("width", slot?.getAttribute("width") ?? 0);
    }
    draw();
  }

  // --- window -----------------------------------------------------------------------------

  const span = stack.highest - stack.lowest;

  const rounded = (value) => (span < 20 ? value.toFixed(2) : String(Math.round(value)));

  function showNumbers() {
    const level = (state.low + state.high) / 2;
    $("window").textContent = `W ${rounded(state.high - state.low)} L ${rounded(level)}`;
  }

  function showWindow() {
    showNumbers();
    $("centre").value = ((state.low + state.high) / 2 - stack.lowest) / span * 1000;
    $("width").value = (state.high - state.low) / span * 1000;
  }

  function setWindow(centre, width) {
    const wide = Math.max(width, span / 500);
    state.low = centre - wide / 2;
    state.high = centre + wide / 2;
    showNumbers();
    draw();
  }

  function fromSliders() {
    setWindow(stack.lowest + $("centre").value / 1000 * span, $("width").value / 1000 * span);
  }

  function reset() {
    Object.assign(state, initial);
    showWindow();
    draw();
  }

  // --- hands ------------------------------------------------------------------------------

  let turned = 0;
  stage.addEventListener("wheel", (event) => {
    if (event.ctrlKey) return;
    event.preventDefault();
    if (event.deltaMode || Math.abs(event.deltaY) >= NOTCH) {
      turned = 0;
      go(state.number + Math.sign(event.deltaY)); // one notch is one slice, whatever its length
      return;
    }
    turned += event.deltaY;
    const steps = Math.trunc(turned / NOTCH);
    if (steps) { turned -= steps * NOTCH; go(state.number + steps); }
  }, { passive: false });

  let drag = null;
  stage.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    stage.setPointerCapture(event.pointerId);
    drag = { x: event.clientX, y: event.clientY, centre: (state.low + state.high) / 2, width: state.high - state.low };
  });
  stage.addEventListener("pointermove", (event) => {
    if (!drag) return;
    const scale = span / stage.clientWidth;
    const across = event.clientX - drag.x;
    const down = event.clientY - drag.y;
    if (Math.hypot(across, down) < 4) return;
    setWindow(drag.centre + down * scale, drag.width + across * scale);
    showWindow();
  });
  for (const end of ["pointerup", "pointercancel"]) stage.addEventListener(end, () => { drag = null; });

  const toggle = (id) => { $(id).checked = !$(id).checked; draw(); };
  const everywhere = {
    ArrowUp: () => go(state.number - 1), ArrowLeft: () => go(state.number - 1),
    ArrowDown: () => go(state.number + 1), ArrowRight: () => go(state.number + 1),
    Home: () => go(1), End: () => go(count),
    o: () => toggle("show"), r: reset,
    f: () => { $("style").value = $("style").value === "filled" ? "contour" : "filled"; draw(); },
  };
  const onStage = {
    PageUp: () => go(state.number - 5), PageDown: () => go(state.number + 5),
    " ": () => toggle("show"),
  };
  // a check box needs no arrows: after a click on it they still change the slice
  const fields = "input:not([type=checkbox]), select, textarea";
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.target.closest?.(fields)) return;
    const act = everywhere[event.key] ?? (document.activeElement === stage ? onStage[event.key] : undefined);
    if (!act) return;
    event.preventDefault();
    act();
  });

  $("slice").addEventListener("input", () => go(Number($("slice").value)));
  $("show").addEventListener("change", draw);
  $("style").addEventListener("change", draw);
  $("opacity").addEventListener("input", () => { outlines.style.opacity = $("opacity").value / 100; });
  for (const id of ["centre", "width"]) $(id).addEventListener("input", fromSliders);
  $("reset").addEventListener("click", reset);
  for (const each of document.querySelectorAll("[data-key]")) {
    each.addEventListener("click", () => {
      const number = byKey.get(each.dataset.key);
      if (number) go(number);
    });
  }

  showWindow();
  go(state.number);
  if (document.activeElement === document.body) stage.focus({ preventScroll: true });
}
