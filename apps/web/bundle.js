// The bundle in model/: its manifest and its files, each checked before anything is done with it.

import {sha256} from "./sha256.js";
import {forgetAllBut, keep, kept} from "./offline.js";

const FOLDER = "model/";
const SCHEMA = 1;
const AGAIN = "Make the bundle again: maestro-edge bundle RUN --app web";
const COPY = "Reload this page; if this stays, copy the bundle again.";

/** A bundle that cannot be used: what happened, and what to do. */
export class BundleError extends Error {
  constructor(what, advice) {
    super(what);
    this.advice = advice;
  }
}

/** The network is away; what is kept works on. */
export class Unreachable extends BundleError {}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const isText = (value) => typeof value === "string";
const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const isNumbers = (value) => Array.isArray(value) && value.every(isNumber);
const orNull = (check) => (value) => value === null || check(value);

const isList = Array.isArray;

const MANIFEST = {device: isObject, model: isText, labels: isList, input: isObject, variants: isList};
const INPUT = {shape: isNumbers, layout: isText, dtype: isText, mean: isNumbers, std: isNumbers};
const VARIANT = {
  name: isText, runtime: isText, precision: isText, file: isText, sha256: isText, size_bytes: isNumber,
  accuracy: isNumber, ranks: isObject, measured_ms: orNull(isObject),
};
const MEASURED = {p50: (value) => isNumber(value) && value > 0, p90: isNumber};

function require(where, found, wanted) {
  for (const [key, check] of Object.entries(wanted)) {
    if (isObject(found) && Object.hasOwn(found, key) && check(found[key])) continue;
    throw new BundleError(`${where}: ${key} is missing or of a wrong type.`, AGAIN);
  }
}

/** The manifest in this text, with what is used of it checked. */
export function parseManifest(text) {
  let raw;
  try {
    raw = JSON.parse(text);
  } catch (error) {
    throw new BundleError(`manifest.json: cut short or not JSON (${error.message}).`, COPY);
  }
  const schema = raw?.schema_version;
  if (schema !== SCHEMA) {
    const newer = isNumber(schema) && schema > SCHEMA;
    throw new BundleError(
      `manifest.json: schema ${JSON.stringify(schema ?? null)}, this app reads schema ${SCHEMA}.`,
      newer ? "The bundle is of a newer maestro-edge: update this app." : AGAIN);
  }
  require("manifest.json", raw, MANIFEST);
  require("manifest.json: device", raw.device, {name: isText});
  checkInput(raw.input);
  for (const [index, variant] of raw.variants.entries()) {
    require(`manifest.json: variant ${index}`, variant, VARIANT);
    if (variant.measured_ms) require(`manifest.json: variant ${index}`, variant.measured_ms, MEASURED);
  }
  return {...raw, choices: raw.choices ?? []};
}

function checkInput(input) {
  require("manifest.json: input", input, INPUT);
  const {shape, layout, dtype, mean, std, resize = "stretch"} = input;
  const channels = shape[layout === "NHWC" ? 3 : 1];
  const isImage =
    shape.length === 4 && shape[0] === 1 && [1, 3].includes(channels) && mean.length === channels &&
    std.length === channels && dtype === "float32" && ["NCHW", "NHWC"].includes(layout) &&
    ["stretch", "crop"].includes(resize);
  if (!isImage) {
    throw new BundleError(
      `manifest.json: input is not one float32 image of 1 or 3 channels: ${JSON.stringify(input)}.`, AGAIN);
  }
}

/** Where a variant's file is, which its name cannot lead out of the folder. */
export function addressOf(file) {
  const parts = file.split("/");
  if (file.includes("\\") || parts.some((part) => ["", ".", ".."].includes(part))) {
    throw new BundleError(`${JSON.stringify(file)} leaves the bundle folder.`, AGAIN);
  }
  return FOLDER + parts.map(encodeURIComponent).join("/");
}

async function ask(address) {
  const missing = "Put a bundle into model/: maestro-edge bundle RUN --app web";
  let answer;
  try {
    answer = await fetch(address, {cache: "no-cache"});
  } catch {
    throw new Unreachable(`${address} cannot be reached.`, "Check the connection, then reload this page.");
  }
  if (!answer.ok) throw new BundleError(`${address} is missing (HTTP ${answer.status}).`, missing);
  return answer;
}

/** The checked manifest; files that were kept of an earlier bundle are dropped. */
export async function loadManifest() {
  const manifest = parseManifest(await (await ask(`${FOLDER}manifest.json`)).text());
  await forgetAllBut(new Set(manifest.variants.map((variant) => variant.sha256)));
  return manifest;
}

/** The bytes of a variant's file, once they are known to be those that were measured; kept for times offline. */
export async function loadFile(variant) {
  const address = addressOf(variant.file);
  const found = await kept(variant.sha256);
  if (found && (await sha256(found)) === variant.sha256) return found;
  const bytes = new Uint8Array(await (await ask(address)).arrayBuffer());
  if (bytes.length !== variant.size_bytes) {
    throw new BundleError(`${address}: ${bytes.length} bytes, not ${variant.size_bytes}.`, COPY);
  }
  if ((await sha256(bytes)) !== variant.sha256) {
    throw new BundleError(`${address}: its sha256 is not the manifest's.`, COPY);
  }
  await keep(variant.sha256, bytes);
  return bytes;
}
