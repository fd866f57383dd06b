package org.maestroedge.classifier

import java.io.File
import java.io.FileNotFoundException
import java.io.IOException
import java.io.InputStream
import java.security.MessageDigest

/**
 * A bundle that `open` reads by name and whose files are unpacked into `folder`, because runtimes want paths.
 *
 * @throws ClassifierError its manifest is missing or cannot be used.
 */
class Bundle(private val folder: File, private val open: (String) -> InputStream) {
    val manifest: Manifest = parseManifest(read("manifest.json") { it.readBytes() }.toString(Charsets.UTF_8))

    /**
     * The variant's file, once it is known to lie in the bundle and to be the one that was measured.
     *
     * @throws ClassifierError it leaves the bundle, is missing, cut short or another one.
     */
    fun file(variant: Variant): File {
        val path = inside(variant.file)
        if (path.isFile && mismatch(path, variant) == null) return path
        val aside = File(path.path + ".part")
        try {
            read(variant.file) { from -> unpack(from, aside) }
            mismatch(aside, variant)?.let { throw ClassifierError("${variant.file}: $it: copy the bundle again") }
            if (!aside.renameTo(path)) throw ClassifierError("$path cannot be written: free some storage")
        } finally {
            aside.delete()
        }
        return path
    }

    private fun inside(name: String): File {
        val root = folder.canonicalFile
        val path = runCatching { File(root, name).canonicalFile }.getOrNull() // a name may hold what no path may
        if (path == null || File(name).isAbsolute || path == root || !path.startsWith(root)) {
            throw ClassifierError("'$name' leaves the bundle folder: make the bundle again")
        }
        return path
    }

    private fun <T> read(name: String, use: (InputStream) -> T): T {
        val stream = try {
            open(name)
        } catch (error: FileNotFoundException) {
            throw ClassifierError("$name is not in the bundle: copy the bundle into the app again", error)
        }
        return try {
            stream.use(use)
        } catch (error: IOException) {
            throw ClassifierError("$name cannot be unpacked (${error.message}): free some storage", error)
        }
    }
}

private fun unpack(from: InputStream, into: File) {
    into.parentFile?.mkdirs()
    into.outputStream().use { from.copyTo(it) }
}

/** What tells the file from the variant's, or null. */
private fun mismatch(path: File, variant: Variant): String? = when {
    path.length() != variant.sizeBytes -> "${path.length()} bytes, not ${variant.sizeBytes}"
    sha256(path) != variant.sha256 -> "its sha256 is not the manifest's"
    else -> null
}

private fun sha256(path: File): String {
    val digest = MessageDigest.getInstance("SHA-256")
    path.inputStream().use { stream ->
        val block = ByteArray(1 shl 16)
        while (true) {
            val count = stream.read(block)
            if (count < 0) break
            digest.update(block, 0, count)
        }
    }
    return digest.digest().joinToString("") { "%02x".format(it) }
}
