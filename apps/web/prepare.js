// From pixels to what the model is fed, by the rules of apps/README.md.

/** RGBA pixels {data, width, height} as the Float32Array of `input`, the manifest's. */
export function prepare(image, input) {
  const nchw = input.layout === "NCHW";
  const [channels, height, width] = nchw ? input.shape.slice(1) : [input.shape[3], input.shape[1], input.shape[2]];
  const scale = Math.min(image.width / width, image.height / height);
  const [wide, high] = input.resize === "crop" ? [scale * width, scale * height] : [image.width, image.height];
  const columns = weights(image.width, wide, width);
  const rows = weights(image.height, high, height);
  const fed = new Float32Array(channels * height * width);
  for (let channel = 0; channel < channels; channel++) {
    const value = channels === 1 ? luma : (data, at) => data[at + channel];
    const plane = planeOf(image, value);
    // each turns the image over its diagonal
    const resized = resize(resize(plane, image.width, columns), image.height, rows);
    const [mean, std] = [input.mean[channel], input.std[channel]];
    for (let pixel = 0; pixel < resized.length; pixel++) {
      const to = nchw ? channel * resized.length + pixel : pixel * channels + channel;
      fed[to] = (resized[pixel] / 255 - mean) / std;
    }
  }
  return fed;
}

/** ITU-R 601 in the fixed point of Pillow's convert("L"). */
const luma = (data, at) => (19595 * data[at] + 38470 * data[at + 1] + 7471 * data[at + 2] + 0x8000) >> 16;

function planeOf({data, width, height}, value) {
  return Float32Array.from({length: width * height}, (_, pixel) => value(data, 4 * pixel));
}

/**
 * Bilinear, antialiased when it shrinks: of each of `to` places the first of the `size` pixels it reads, and shares.
 * Only the centred `part` of the size is resized, between pixels; what borders it counts, as in Pillow's `box`.
 */
function weights(size, part, to) {
  const step = part / to;
  const reach = Math.max(step, 1);
  return Array.from({length: to}, (_, place) => {
    const middle = (size - part) / 2 + (place + 0.5) * step - 0.5;
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
