// Values of fields that are not typed into key by key: what a person means is converted to what the field takes. A text
// that can mean several values, or none that the field takes, is refused before anything changes.

const EXAMPLE_YEAR = 2024;
const DATE_ORDER = /^(\d{4})\D+(\d{1,2})\D+(\d{1,2})\D*$|^(\d{4})(\d{2})(\d{2})$/;

const pad = (number, length = 2) => String(number).padStart(length, "0");

// Return the number of the month (1 to 12) that a word names in English or in the page's language; 0 if it names none.
function monthByName(word) {
  const languages = ["en", attribute(ofDocument("documentElement"), "lang"), navigator.language].filter(Boolean);
  const start = word.toLowerCase().replace(/\.$/, "");
  if (start.length < 3) return 0;
  for (const language of languages) {
    for (let month = 1; month <= 12; month += 1) {
      try {
        const format = new Intl.DateTimeFormat(language, { month: "long", day: "numeric", timeZone: "UTC" });
        const parts = format.formatToParts(Date.UTC(EXAMPLE_YEAR, month - 1, 1));
        const name = parts.find((part) => part.type === "month")?.value.toLowerCase();
        if (name?.startsWith(start)) return month;
      } catch {
        break; // the page's language is none
      }
    }
  }
  return 0;
}

// Return the words of a date that are neither weekdays nor fillers, with ordinals as numbers.
function dateWords(text) {
  const words = text.toLowerCase().split(/[\s,/.\-]+/).filter(Boolean).map((word) => word.replace(/^(\d+)(st|nd|rd|th)$/, "$1"));
  return words.filter((word) => !/^(the|of|de|mon|tues?|wed|thu|thurs?|fri|sat|sun)(day|nesday|rsday|urday)?$/.test(word));
}

// Return a date as yyyy-mm-dd; "" if the text is none, or could be several.
function parseDate(text) {
  const iso = text.match(DATE_ORDER);
  if (iso) {
    const [year, month, day] = iso.slice(1).filter(Boolean);
    return `${year}-${pad(month)}-${pad(day)}`;
  }
  const words = dateWords(text);
  if (words.length !== 3) return "";
  const named = words.findIndex((word) => !/^\d+$/.test(word));
  if (named >= 0) {
    const month = monthByName(words[named]);
    const [first, second] = words.filter((_, position) => position !== named);
    const [day, year] = first.length === 4 ? [second, first] : [first, second];
    return month && /^\d{4}$/.test(year) && /^\d{1,2}$/.test(day) ? `${year}-${pad(month)}-${pad(day)}` : "";
  }
  const [first, second, year] = words;
  if (year.length !== 4 || first.length > 2 || second.length > 2) return "";
  if (Number(first) > 12 || first === second) return `${year}-${pad(second)}-${pad(first)}`;
  return Number(second) > 12 ? `${year}-${pad(first)}-${pad(second)}` : ""; // 5.1.2026: day or month first?
}

// Return a time as hh:mm or hh:mm:ss; "" if the text is none.
function parseTime(text) {
  if (/^noon$/i.test(text)) return "12:00";
  if (/^midnight$/i.test(text)) return "00:00";
  const found = text.match(/^(\d{1,2})(?:[:.h](\d{2}))?(?::(\d{2}(?:\.\d{1,3})?))?\s*(?:([ap])\.?m\.?)?$/i);
  if (!found) return "";
  const [, hour, minute, second, half] = found;
  if (!half && minute === undefined) return "";
  if (half && (Number(hour) < 1 || Number(hour) > 12)) return "";
  const hours = half ? (Number(hour) % 12) + (half.toLowerCase() === "p" ? 12 : 0) : hour;
  return `${pad(hours)}:${minute ?? "00"}` + (second ? `:${second}` : "");
}

// Return a date and a time as yyyy-mm-ddThh:mm; "" if the text is none.
function parseMoment(text) {
  const found = text.match(/^(.*?\d{4}\S*|.*?)[\sT,]+(?:at\s+)?(\d{1,2}[:.h]\d{2}\S*(?:\s*[ap]\.?m\.?)?|\d{1,2}\s*[ap]\.?m\.?|noon|midnight)$/i);
  if (!found) return "";
  const [date, time] = [parseDate(found[1].replace(/[\s,]+$/, "")), parseTime(found[2])];
  return date && time ? `${date}T${time}` : "";
}

// Return a month as yyyy-mm; "" if the text is none.
function parseMonth(text) {
  const words = dateWords(text);
  const year = words.find((word) => /^\d{4}$/.test(word));
  const other = words.find((word) => word !== year);
  if (words.length !== 2 || !year || !other) return "";
  const month = /^\d{1,2}$/.test(other) ? Number(other) : monthByName(other);
  return month ? `${year}-${pad(month)}` : "";
}

// Return a week as yyyy-Www; "" if the text is none.
function parseWeek(text) {
  const found = text.match(/^(\d{4})[\s,-]*(?:w|week)\s*(\d{1,2})$/i) ?? text.match(/^(?:w|week)\s*(\d{1,2})[\s,/of-]+(\d{4})$/i);
  if (!found) return "";
  const [year, week] = found[1].length === 4 ? [found[1], found[2]] : [found[2], found[1]];
  return `${year}-W${pad(week)}`;
}

// Return a color as #rrggbb; "" if the text is no opaque color.
function parseColor(text) {
  const color = /^[\da-f]{6}$/i.test(text) ? `#${text}` : text;
  if (!CSS.supports("color", color) || !/^(#|rgb|hsl|[a-z]+$)/i.test(color)) return "";
  const canvas = new OffscreenCanvas(1, 1).getContext("2d");
  canvas.fillStyle = color;
  return /^#[\da-f]{6}$/.test(canvas.fillStyle) ? canvas.fillStyle : "";
}

// Return a number with a point for the decimals; "" if the text is none.
function parseNumber(text) {
  const number = text.replace(/[\s_]|\s*%$/g, "");
  return number !== "" && Number.isFinite(Number(number)) ? String(Number(number)) : "";
}

const PARSERS = {
  date: parseDate, time: parseTime, "datetime-local": parseMoment, month: parseMonth, week: parseWeek, color: parseColor,
  range: parseNumber,
};

// Return an input of the same kind and limits that is not in the page.
function copyOf(field) {
  const copy = document.createElement("input");
  for (const name of ["type", "min", "max", "step", "value"]) {
    if (hasAttribute(field, name)) copy.setAttribute(name, attribute(field, name));
  }
  return copy;
}

// Describe what a field takes: `yyyy-mm-dd from 2024-01-01`, `a number from 0 to 100 in steps of 10`.
function formatOf(field) {
  const isRange = field.type === "range";
  const [min, max, step] = [field.min || (isRange ? "0" : ""), field.max || (isRange ? "100" : ""), field.step];
  const limits = [min && `from ${min}`, max && `to ${max}`];
  if (step && (isRange || field.type === "number")) limits.push(step === "any" ? "" : `in steps of ${step}`);
  return [FORMATS[INPUTS[field.type]] ?? "a number", ...limits.filter(Boolean)].join(" ");
}

// Return the value that a field takes for `text`; refuse a text that it does not take.
function valueFor(field, number, text) {
  const refuse = (reason = "") => {
    const wanted = `it takes ${formatOf(field)}${reason}. Nothing was changed`;
    throw new Refusal(`[${number}] does not take '${shorten(text, 100)}': ${wanted}.`, BAD_REQUEST);
  };
  const trimmed = collapse(text);
  const value = trimmed && PARSERS[field.type](trimmed);
  if (trimmed && !value) refuse();
  const copy = copyOf(field);
  copy.value = value;
  const taken = field.type === "range" ? Number(copy.value) === Number(value) : copy.value !== "" || !trimmed;
  if (!taken) refuse(field.type === "range" && trimmed ? `; the nearest is ${copy.value}` : "");
  if (copy.validity.rangeUnderflow || copy.validity.rangeOverflow) refuse();
  return copy.value;
}

// Return the value to which to move a slider or spinbutton that the page draws itself; refuse a text that is none.
function movedValue(element, role, number, text) {
  const limit = (name, other) => attribute(element, name) ?? (role === "slider" ? other : ""); // the defaults of WAI-ARIA
  const [min, max] = [limit("aria-valuemin", "0"), limit("aria-valuemax", "100")];
  const value = parseNumber(collapse(text));
  if (value === "" || (min && Number(value) < Number(min)) || (max && Number(value) > Number(max))) {
    const wanted = `it takes a number${min && ` from ${min}`}${max && ` to ${max}`}. Nothing was changed`;
    throw new Refusal(`[${number}] does not take '${shorten(text, 100)}': ${wanted}.`, BAD_REQUEST);
  }
  return Number(value);
}

// Refuse a text that would leave a number field empty.
function checkTyped(field, number, text) {
  if (!(field instanceof HTMLInputElement) || field.type !== "number" || !text.trim()) return;
  const copy = copyOf(field);
  copy.value = text.trim();
  if (copy.value === "") {
    const wanted = `it takes ${formatOf(field)}, such as 12.5. Nothing was changed`;
    throw new Refusal(`[${number}] does not take '${shorten(text, 100)}': ${wanted}.`, BAD_REQUEST);
  }
}

// Describe what is not as it was typed; "" if the field holds the text and accepts it.
function typedState(field, number, text) {
  if (!(field instanceof HTMLInputElement || field instanceof HTMLTextAreaElement)) return "";
  const { value } = field;
  const held = field.type === "password" ? `${value.length} characters` : quote(value, 200);
  const limit = field.maxLength >= 0 && value.length >= field.maxLength ? `, because it takes ${field.maxLength} characters` : "";
  const bare = (each) => each.replace(/[^\p{L}\p{N}]/gu, "");
  const isFormatted = collapse(value) !== collapse(text) && bare(value) !== "" && bare(value) === bare(text);
  if (isFormatted) return `[${number}] now holds ${held}: it formats what is typed.`;
  if (collapse(value) !== collapse(text)) return `[${number}] now holds ${held} and not all that was typed${limit}.`;
  return field.validity.valid || !text ? "" : `[${number}] does not accept its value: ${field.validationMessage}`;
}

let fileProbe = null; // a file field that is not in the page, to find out which files the browser can read

const FILES = {
  fileProbe() {
    fileProbe = document.createElement("input");
    fileProbe.type = "file";
    fileProbe.multiple = true;
    return fileProbe;
  },

  // Return the positions of the files of the probe that the browser cannot read.
  async unreadableFiles() {
    const unreadable = [];
    for (const [position, file] of [...fileProbe.files].entries()) {
      await (file.size ? file.slice(0, 1) : file).arrayBuffer().catch(() => unreadable.push(position));
    }
    fileProbe = null;
    return { unreadable };
  },
};
