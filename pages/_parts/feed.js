// What moves on open pages, asked for again and again from one address instead of a script run each (feed.py).
(() => {
  const EVERY = __EVERY__;
  const page = window.espalierFeed ?? (window.espalierFeed = { timer: 0, waits: 0, marks: {}, pressed: {} });
  const address = () => new URL("live", location.origin + location.pathname.replace(/\/+$/, "")).href;

  function put(slots) {
    for (const place of document.querySelectorAll("[data-live]")) {
      const text = slots[place.dataset.live];
      if (text !== undefined && place.espalierLast !== text) {
        place.innerHTML = text;
        place.espalierLast = text;
      }
    }
  }

  const others = () =>
    [...document.querySelectorAll("[data-live-mark]")]
      .filter((mark) => (page.marks[mark.dataset.liveMark] ?? mark.dataset.liveIs) !== mark.dataset.liveIs)
      .map((mark) => mark.dataset.liveMark);

  // The page's before the line's, and one at a time: two clicks in one tick make one message, with the fragment of the
  // first. Many pages do not draw at the same moment: each waits for a part of `spread`.
  function press() {
    page.waits = 0;
    const name = others().pop();
    const last = page.pressed[name];
    if (!name || (last && last.mark === page.marks[name] && Date.now() - last.at < 4000)) return;
    page.pressed[name] = { mark: page.marks[name], at: Date.now() };
    document.querySelector(`.st-key-${name} button`)?.click();
    setTimeout(look, 500);
  }

  async function look() {
    if (document.hidden || !document.querySelector("[data-live-on]")) return;
    try {
      const answer = await fetch(address(), { cache: "no-store", credentials: "same-origin" });
      if (!answer.ok) return;
      const found = await answer.json();
      put(found.slots);
      page.marks = found.marks;
      if (!page.waits && others().length) page.waits = setTimeout(press, Math.random() * found.spread);
    } catch {
      // the app is gone or the network: Streamlit says so by itself, and the next look may find it again
    }
  }

  clearInterval(page.timer);
  page.timer = setInterval(look, EVERY);
  if (page.seen) document.removeEventListener("visibilitychange", page.seen);
  page.seen = look;
  document.addEventListener("visibilitychange", look);
})();
