// Runs in the page's own world, before the page's code. Whatever would open a dialog of the browser, which only a person
// can close, is refused at once. The isolated world asks with an event what was refused; nobody else knows its name.
(() => {
  const { apply } = Reflect;
  const { preventDefault } = Event.prototype;
  const { userActivation } = navigator;
  const getter = (owner, name) => Object.getOwnPropertyDescriptor(owner, name).get;
  const isActive = getter(UserActivation.prototype, "isActive");
  const dispatch = dispatchEvent;
  let asked = ""; // what was refused, one a line

  const report = (what) => {
    if (asked.length < 2000) asked += what + "\n";
  };

  addEventListener("PROMPTS-ask", () => {
    apply(dispatch, globalThis, [new CustomEvent("PROMPTS-answer", { detail: asked })]);
    asked = "";
  });

  // Replace a method by a proxy, whose text is that of a native function.
  const replace = (owner, name, call) => {
    if (typeof owner?.[name] === "function") owner[name] = new Proxy(owner[name], { apply: call });
  };

  // Report a request that Chromium itself denies.
  const tell = (what, owner, ...names) => {
    for (const name of names) {
      replace(owner, name, (native, self, args) => {
        report(what);
        return apply(native, self, args);
      });
    }
  };

  // Refuse a request as if a person had closed its dialog.
  const refuse = (what, owner, name, error = "NotAllowedError") => {
    replace(owner, name, () => {
      report(what);
      return Promise.reject(new DOMException("The user dismissed the request.", error));
    });
  };

  const prototype = (name) => globalThis[name]?.prototype;

  // The dialogs of the File System Access API are replaced by a file field, whose dialog the service answers, and by
  // downloads, which it follows.
  const openFiles = (options) => new Promise((resolve, reject) => {
    const input = document.createElement("input");
    input.type = "file";
    input.multiple = Boolean(options?.multiple);
    input.addEventListener("change", () => resolve([...input.files].map(handleOf)));
    if (apply(isActive, userActivation, [])) return input.click();
    reject(new DOMException("Must be handling a user gesture to show a file picker.", "SecurityError"));
  });

  const handleOf = (file) => {
    const members = {
      kind: "file",
      name: file.name,
      getFile: async () => file,
      createWritable: async () => downloadOf(file.name),
      queryPermission: async () => "granted",
      requestPermission: async () => "granted",
    };
    return Object.create(prototype("FileSystemFileHandle"), Object.fromEntries(
      Object.entries(members).map(([name, value]) => [name, { value }])));
  };

  // Return a stream that becomes a download when it is closed.
  const downloadOf = (name) => {
    let parts = [];
    const write = (chunk) => {
      const { type = "write", data = chunk, position } = chunk?.constructor === Object ? chunk : {};
      if (type === "truncate" && !chunk.size) parts = [];
      else if (type === "write" && position === undefined) parts.push(data);
      else throw new DOMException("The file is written from its start to its end.", "NotSupportedError");
    };
    const close = () => {
      const link = document.createElement("a");
      link.download = name;
      link.href = URL.createObjectURL(new Blob(parts));
      link.click();
    };
    const stream = new WritableStream({ write, close });
    const send = async (chunk) => {
      const writer = stream.getWriter();
      try {
        await writer.write(chunk);
      } finally {
        writer.releaseLock();
      }
    };
    return Object.assign(stream, {
      write: send,
      seek: (position) => send({ type: "seek", position }),
      truncate: (size) => send({ type: "truncate", size }),
    });
  };

  tell("location", prototype("Geolocation"), "getCurrentPosition", "watchPosition");
  tell("notifications", globalThis.Notification, "requestPermission");
  tell("push", prototype("PushManager"), "subscribe");
  tell("clipboard", prototype("Clipboard"), "read", "readText");
  tell("midi", Navigator.prototype, "requestMIDIAccess");
  tell("idle", globalThis.IdleDetector, "requestPermission");
  tell("screens", globalThis, "getScreenDetails");
  tell("fonts", globalThis, "queryLocalFonts");
  refuse("camera", prototype("MediaDevices"), "getUserMedia");
  refuse("screen", prototype("MediaDevices"), "getDisplayMedia");
  refuse("device", prototype("USB"), "requestDevice", "NotFoundError");
  refuse("device", prototype("HID"), "requestDevice", "NotFoundError");
  refuse("device", prototype("Serial"), "requestPort", "NotFoundError");
  refuse("device", prototype("Bluetooth"), "requestDevice", "NotFoundError");
  refuse("device", prototype("PresentationRequest"), "start", "NotFoundError");
  refuse("device", prototype("RemotePlayback"), "prompt", "NotFoundError");
  refuse("color", prototype("EyeDropper"), "open", "AbortError");
  refuse("payment", prototype("PaymentRequest"), "show", "AbortError");
  replace(globalThis, "showOpenFilePicker", (native, self, [options]) => openFiles(options));
  replace(globalThis, "showSaveFilePicker", async (native, self, [options]) => {
    return handleOf(new File([], options?.suggestedName || "untitled"));
  });
  refuse("folder", globalThis, "showDirectoryPicker", "AbortError");
  replace(globalThis, "print", () => report("print"));
  replace(Navigator.prototype, "registerProtocolHandler", () => report("handler"));

  for (const name of ["get", "create"]) {
    replace(prototype("CredentialsContainer"), name, (native, self, args) => {
      const { publicKey, identity, digital, mediation } = args[0] ?? {};
      const isAsking = (publicKey || identity || digital) && mediation !== "conditional" && mediation !== "silent";
      if (!isAsking) return apply(native, self, args);
      if (publicKey || apply(isActive, userActivation, [])) report(publicKey ? "passkey" : "account");
      return Promise.reject(new DOMException("The user dismissed the request.", "NotAllowedError"));
    });
  }

  // A link of another program (mailto:, tel:, zoommtg:) opens a dialog that blocks the page, or a blocked page.
  const isWeb = (url) =>
    /^(https?|about|blob|data|file|javascript|chrome[a-z-]*|devtools|filesystem|view-source):/i.test(url);
  const baseUrl = getter(Node.prototype, "baseURI");
  globalThis.navigation?.addEventListener("navigate", (event) => {
    const { url } = event.destination;
    if (isWeb(url)) return;
    report(`program ${url}`);
    apply(preventDefault, event, []);
  });
  replace(globalThis, "open", (native, self, args) => {
    const url = URL.parse(args[0] ?? "", apply(baseUrl, document, []))?.href ?? "about:blank";
    if (isWeb(url)) return apply(native, self, args);
    report(`program ${url}`);
    return null;
  });
})();
