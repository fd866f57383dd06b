// From pixels to what the model is fed, by the rules of apps/README.md.

/** RGBA pixels {data, width, height} as the Float32Array of `input`, the manifest's. */
export function prepare(image, input) {
  const nchw = input.layout === "NCHW";
  const [channels, height, width] = nchw ? input.shape.slice(1) : [input.shape[3], input.shape[1], input.shape[2]];
  const {left, top, wide, high} = input.resize === "crop" ? centre(image, width / height) : whole(image);
  const columns = weights(wide, width);
  const rows = weights(high, height);
  const fed = new Float32Array(channels * height * width);
  for (let channel = 0; channel < channels; channel++) {
    const value = channels === 1 ? luma : (data, at) => data[at + channel];
    const plane = planeOf(image, {left, top, wide, high}, value);
    const resized = resize(resize(plane, wide, columns), high, rows); // each turns the image over its diagonal
    const [mean, std] = [input.mean[channel], input.std[channel]];
    for (let pixel = 0; pixel < resized.length; pixel++) {
      const to = nchw ? channel * resized.length + pixel : pixel * channels + channel;
      fed[to] = (resized[pixel] / 255 - mean) / std;
    }
  }
  return fed;
}

const whole = ({width, height}) => ({left: 0, top: 0, wide: width, high: height});

/** The largest centred part of this aspect ratio, in whole pixels. */
function centre({width, height}, aspect) {
  const wide = Math.max(1, Math.min(width, Math.round(height * aspect)));
  const high = Math.max(1, Math.min(height, Math.round(width / aspect)));
  return {left: Math.floor((width - wide) / 2), top: Math.floor((height - high) / 2), wide, high};
}

/** ITU-R 601 in the fixed point of Pillow's convert("L"). */
const luma = (data, at) => (19595 * data[at] + 38470 * data[at + 1] + 7471 * data[at + 2] + 0x8000) >> 16;

function planeOf({data, width}, {left, top, wide, high}, value) {
  const plane = new Float32Array(wide * high);
  for (let y = 0, to = 0; y < high; y++) {
    for (let x = 0, at = 4 * ((top + y) * width + left); x < wide; x++, at += 4) plane[to++] = value(data, at);
  }
  return plane;
}

/** Bilinear, antialiased when it shrinks: of each of `to` places the first of the `size` it reads, and shares. */
function weights(size, to) {
  const step = size / to;
  const reach = Math.max(step, 1);
  return Array.from({length: to}, (_, place) => {
    const middle = (place + 0.5) * step - 0.5;
    const first = Math.max(0, Math.ceil(middle - reach));
    const last = Math.min(size - 1, Math.floor(middle + reach));
    const shares = Array.from(
      {length: last - first + 1}, (_, i) => Math.max(0, 1 - Math.abs(first + i - middle) / reach));
    const sum = shares.reduce((a, b) => a + b, 0);
    return {first, shares: shares.map((share) => share / sum)};
  });
}

/** Resizes the rows of a plane, (H, size) → (to, H): columns and rows are swapped, so twice resizes both. */
function resize(plane, size, places) {
  const height = plane.length / size;
  const out = new Float32Array(places.length * height);
  for (let x = 0, to = 0; x < places.length; x++) {
    const {first, shares} = places[x];
    for (let y = 0; y < height; y++, to++) {
      let sum = 0;
      for (let i = 0, at = y * size + first; i < shares.length; i++, at++) sum += shares[i] * plane[at];
      out[to] = sum;
    }
  }
  return out;
}
