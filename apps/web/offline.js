// What makes the page work without a network: the service worker keeps the page's own files (sw.js), and here the
// bundle's files are kept by their sha256, once they are checked. Without https there is neither, and no harm.

const CACHE = `maestro-edge-files ${new URL(".", location.href).pathname}`; // other apps may share the origin
const addressOf = (sha256) => `kept/${encodeURIComponent(sha256)}`;

/** Wait, but not for long, until the service worker sees what is fetched from here on. */
export async function register() {
  if (!navigator.serviceWorker) return;
  const controlled = new Promise((resolve) => {
    navigator.serviceWorker.addEventListener("controllerchange", resolve, {once: true});
    setTimeout(resolve, 3000);
  });
  try {
    await navigator.serviceWorker.register("sw.js");
  } catch {
    return; // private windows of some browsers have none
  }
  if (!navigator.serviceWorker.controller) await controlled;
}

const open = () => globalThis.caches?.open(CACHE).catch(() => null);

/** The bytes that were kept under this digest, or null. */
export async function kept(sha256) {
  const found = await (await open())?.match(addressOf(sha256));
  return found ? new Uint8Array(await found.arrayBuffer()) : null;
}

export async function keep(sha256, bytes) {
  // Full or forbidden, the page works as long as the network does.
  await (await open())?.put(addressOf(sha256), new Response(bytes)).catch(() => null);
}

/** Drop the files of bundles that were here before. */
export async function forgetAllBut(digests) {
  const cache = await open();
  for (const {url} of (await cache?.keys()) ?? []) {
    if (!digests.has(decodeURIComponent(url.slice(url.lastIndexOf("/") + 1)))) await cache.delete(url);
  }
}
