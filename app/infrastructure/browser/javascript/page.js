// Runs in the page's own world, before the page's code: a print dialog of the desktop would hold the page up until a
// person closes it.
globalThis.print = () => {};
