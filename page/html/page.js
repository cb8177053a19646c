// What the page does in the browser alone: no request follows from anything here.
(() => {
  const root = document.documentElement;
  const NAME = "Secateur";
  const PHONE = "(max-width: 720px)";
  const query = () => new URLSearchParams(location.search);

  // `?lesson=5&only` shows a lesson without the rest of the page.
  root.classList.toggle("only-lesson", query().has("only"));

  // The page is shown when its controls are there.
  const CONTROLS = ["#model input", "#neurons-fraction input", "#prompt textarea", "#examples .gallery-item div", "#prune"];
  const LONGEST_WAIT = 10_000;
  root.classList.add("loading");
  const show = () => {
    root.classList.remove("loading");
    document.querySelector("#first-look")?.remove();
  };
  setTimeout(show, LONGEST_WAIT);
  const showWhenReady = () => {
    if (root.classList.contains("loading") && CONTROLS.every((selector) => document.querySelector(selector))) show();
  };

  /* The address and the title follow what is shown, so that a reload or a shared address keeps it. */

  const replace = (changes, title) => {
    const address = new URL(location);
    for (const [name, value] of Object.entries(changes)) {
      if (value === null) address.searchParams.delete(name);
      else address.searchParams.set(name, value);
    }
    history.replaceState(history.state, "", address);
    if (title !== undefined) document.title = title ? `${title} · ${NAME}` : NAME;
  };
  let hasActed = false;
  const acted = () => hasActed;
  for (const event of ["pointerdown", "keydown"])
    addEventListener(event, () => { hasActed = true; }, { capture: true, once: true });

  window.secateur = {
    // Note that the Prune tab was opened by the visitor; while the page opens, its address says what to show.
    showPrune() {
      if (!acted()) return;
      root.classList.remove("only-lesson");
      replace({ lesson: null, only: null }, "");
    },
    // Note that a lesson is open. `title`: its number and title.
    showLesson(number, title) {
      const tab = document.querySelector("#lesson-see");
      if (!tab?.checkVisibility()) return;
      replace({ lesson: number }, title);
      const top = tab.getBoundingClientRect().top;
      if (acted() && (top < 0 || top > innerHeight / 2)) tab.scrollIntoView({ block: "start" });
    },
    // Note that the results are those of a link; a visitor who has done nothing keeps the address they came by.
    showResult(link) {
      if (!link || !acted()) return;
      const linked = new URL(link).searchParams;
      replace(Object.fromEntries(["recipe", "mode", "prompt"].map((name) => [name, linked.get(name)])));
    },
    // Note that the visitor has opened a room. `link`: the teacher's link to it.
    showRoom(link) {
      if (!link) return;
      const linked = new URL(link).searchParams;
      replace({ room: linked.get("room"), teacher: linked.get("teacher") });
      if (acted()) document.getElementById("lesson-see")?.scrollIntoView({ block: "start" });
    },
    // What this tab is called in a room: a reload starts another session, and is still the same voter.
    seat() {
      try {
        return (sessionStorage.seat ??= crypto.getRandomValues(new Uint32Array(4)).join("-"));
      } catch {
        return "";  // This browser keeps nothing.
      }
    },
    // Start a download that was prepared, as soon as its button is there; after a failure it does not come.
    download(tries = 40) {
      const button = document.getElementById("download");
      if (isShown(button)) button.click();
      else if (tries > 0) setTimeout(() => this.download(tries - 1), 50);
    },
  };

  /* Results fade while the controls say something else than they did for these results. */

  const settings = new Map();
  const isOther = (value, place) =>
    settings.has(place) && JSON.stringify(settings.get(place) ?? "") !== JSON.stringify(value ?? "");
  const compareSettings = () => {
    const heading = document.querySelector("#result-heading [data-settings]");
    if (!heading) return;
    const changed = JSON.parse(heading.dataset.settings).some(isOther);
    if (changed !== document.body.hasAttribute("data-changed")) document.body.toggleAttribute("data-changed", changed);
  };
  // Note what a control says. A control that was never heard of says what it said when the page opened.
  window.secateur.compareSetting = (place, value) => {
    settings.set(place, value);
    compareSettings();
  };

  /* Focus moves from a button that disappears to the one that takes its place. */

  const PARTNERS = {
    prune: "stop", stop: "prune", search: "stop",
    "lesson-run": "lesson-stop", "lesson-stop": "lesson-run",
    "distill-start": "distill-stop", "distill-stop": "distill-start",
    prepare: "download", download: "prepare",
    "open-room": "room-reveal", "room-reveal": "lesson-run",
  };
  const isShown = (element) => Boolean(element?.isConnected && element.checkVisibility());
  let focused = null;
  const keepFocus = () => {
    if (!focused || document.activeElement !== document.body || isShown(focused)) return;
    const partner = document.getElementById(PARTNERS[focused.id]);
    if (isShown(partner) && !partner.disabled) partner.focus({ preventScroll: true });
  };
  document.addEventListener("focusin", ({ target }) => {
    focused = target.id in PARTNERS ? target : null;
  });

  /* One live region that stays announces each new stage of a job, though not every count in it. */

  const STATUS = "#status, #lesson-status, #distill-status, #inspect-status, #prepare-status, #push-status, #room-status";
  const PAUSE = 1500;
  const announced = new Map();
  let waiting = "", timer = null;
  const announce = (text) => {
    waiting = text;
    timer ??= setTimeout(() => {
      timer = null;
      const region = document.getElementById("announcements");
      if (region && region.textContent !== waiting) region.textContent = waiting;
    }, PAUSE);
  };
  const followStatus = () => {
    for (const element of document.querySelectorAll(STATUS)) {
      const text = element.querySelector(".status > span, p")?.textContent.trim() ?? "";
      const stage = text.replace(/[\d.,]+/g, "");
      if (announced.get(element.id) === stage) continue;
      const first = !announced.has(element.id);
      announced.set(element.id, stage);
      if (text && !first) announce(text);
    }
  };
  // How many have answered is announced with its number.
  let answered = "";
  const followRoom = () => {
    const board = document.getElementById("room-board");
    const text = (board?.querySelector(".answers") ?? board?.querySelector("p"))?.textContent.trim() ?? "";
    if (text && text !== answered) announce(text);
    answered = text;
  };
  let writing = false;
  const followTexts = () => {
    const now = Boolean(document.querySelector("#texts .cursor"));
    if (writing && !now) announce("Both answers are complete.");
    writing = now;
  };

  /* The layers of the drawing are buttons: the arrow keys move between them, and what each is stands below. */

  const MOVES = { ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
  const layerOf = (target) => target.closest?.(".layers .layer");
  const layersBeside = (layer) => [...layer.parentNode.querySelectorAll(".layer")];
  const isRemoved = (layer) => layer.getAttribute("aria-pressed") === "true";
  // Note that a layer was pressed, and return the numbers of all that are removed then. One layer must remain.
  window.secateur.pressLayer = (target) => {
    const layer = layerOf(target);
    if (layer?.getAttribute("role") !== "button") return null;
    const layers = layersBeside(layer), pressed = !isRemoved(layer);
    if (pressed && layers.every((each) => each === layer || isRemoved(each))) return null;
    layer.setAttribute("aria-pressed", pressed);
    layer.setAttribute("class", `layer ${pressed ? "removed" : "kept"}`);
    return layers.filter(isRemoved).map((each) => Number(each.dataset.layer));
  };
  // The chart of influences belongs to the same model, or to the same lesson, if it was drawn.
  const influenceOf = (layer) => {
    const around = layer.closest("#lesson-results") ?? document.getElementById("influence-chart");
    const value = around?.querySelector("table.influence")?.tBodies[0].rows[layer.dataset.layer]?.cells[2];
    return value ? `. Block influence ${value.textContent}` : "";
  };
  const describeLayers = () => {
    for (const hint of document.querySelectorAll(".model-map .hint")) {
      const layer = hint.parentNode.querySelector(".layer:hover, .layer:focus-visible");
      const text = layer ? layer.getAttribute("aria-label") + influenceOf(layer) : hint.dataset.rest;
      if (hint.textContent !== text) hint.textContent = text;
    }
  };
  document.addEventListener("keydown", (event) => {
    const layer = layerOf(event.target);
    if (!layer || event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "Enter" || event.key === " ") {
      layer.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    } else if (event.key in MOVES) {
      const layers = layersBeside(layer);
      const place = Math.max(0, Math.min(layers.length - 1, layers.indexOf(layer) + MOVES[event.key]));
      for (const each of layers) each.setAttribute("tabindex", each === layers[place] ? 0 : -1);
      layers[place].focus({ preventScroll: true });
    } else return;
    event.preventDefault();
  });

  let scheduled = false;
  const schedule = () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      compareSettings();
      followStatus();
      followTexts();
      describeLayers();
      followRoom();
    });
  };
  for (const event of ["pointerover", "pointerout", "focusin", "focusout"])
    document.addEventListener(event, ({ target }) => { if (layerOf(target)) schedule(); });
  new MutationObserver(() => {
    keepFocus();
    showWhenReady();
    schedule();
  }).observe(root, {
    subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ["class", "style"],
  });

  /* On a phone, the answers are below the button that asks for them. */

  document.addEventListener("click", ({ target }) => {
    if (!target.closest?.("#prune") || !matchMedia(PHONE).matches) return;
    const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
    document.getElementById("texts")?.scrollIntoView({ behavior: still ? "auto" : "smooth", block: "start" });
  });
})();
