// Scrolling, and the signs that more is being loaded at the end of what was scrolled.

const BUSY = "[aria-busy=true],[role=progressbar]:not([aria-valuenow]),progress:not([value]),[data-loading=true]";
const MARKED = ["spinner", "skeleton", "shimmer", "loading", "loader", "placeholder"]
  .flatMap((word) => [`[class*=${word} i]`, `[id*=${word} i]`]).join(",");
const LOADING_TEXT = new RegExp(
  "^(loading|fetching|please wait|lädt|wird geladen|laden|chargement|cargando|caricamento|carregando|загрузка|" +
    "加载中|正在加载|載入中|読み込み中|불러오는 중|로딩)", "i");
const MAX_LOADING_TEXT = 40;
const MAX_SCANNED = 300; // elements, from the end of the document

// Return what scrolls, or the key of a frame in which to look for it: `{ scroller }`, `{ frame }` or {}.
function scrollTarget() {
  const scroller = mainScroller();
  if (!scroller) return {};
  const middle = innermostElementAt(innerWidth / 2, innerHeight / 2);
  const isFrame = middle && frameKeys.has(middle) && boxOf(middle).height > innerHeight / 2;
  return isFrame && !isScrollable(scroller) ? { frame: keyOf(middle) } : { scroller };
}

function isShown(element) {
  const { top, bottom, width, height } = boxOf(element);
  return width > 0 && height > 0 && top < innerHeight && bottom > 0 &&
    checkVisibility(element, { visibilityProperty: true, opacityProperty: true });
}

function isAnimated(element) {
  return element.getAnimations({ subtree: true }).some((each) =>
    each.playState === "running" && each.effect?.getComputedTiming().iterations === Infinity);
}

// Return whether the viewport shows that something is being loaded.
function showsLoading() {
  const all = (selector) => [...document.querySelectorAll(selector)].slice(-MAX_SCANNED);
  const saysLoading = (element) => {
    const text = collapse(textOf(element));
    return text.length <= MAX_LOADING_TEXT && LOADING_TEXT.test(text);
  };
  return all(BUSY).some(isShown) ||
    all(MARKED).some((each) => isShown(each) && (isAnimated(each) || saysLoading(each))) ||
    all("img").some((each) => !each.complete && isShown(each)) ||
    all("p,div,span,li,td,button").some((each) => !each.childElementCount && saysLoading(each) && isShown(each));
}

const SCROLLING = {
  // Scroll by almost a screen or to the end. Return by how many pixels, or the key of a frame to scroll instead.
  scroll(down, toEnd) {
    const { scroller, frame } = scrollTarget();
    if (!scroller) return frame === undefined ? { moved: 0 } : { frame };
    const before = scroller.scrollTop;
    const step = toEnd ? scrollHeightOf(scroller) : clientHeightOf(scroller) * 0.9;
    scroller.scrollBy({ top: down ? step : -step, behavior: "instant" });
    return { moved: Math.round(scroller.scrollTop - before) };
  },

  // Return how many pixels are left below, and whether the viewport shows that more is being loaded.
  scrollState() {
    const { scroller, frame } = scrollTarget();
    if (!scroller) return frame === undefined ? { below: 0, loading: false } : { frame };
    const below = scrollHeightOf(scroller) - clientHeightOf(scroller) - scroller.scrollTop;
    return { below: Math.floor(below), loading: showsLoading() };
  },
};
