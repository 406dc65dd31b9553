// Runs in the page's own world, before the page's code. A native print dialog would block the page until a person
// closes it.
globalThis.print = () => {};
