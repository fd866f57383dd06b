package org.maestroedge.classifier

/** The runtimes that are in this app, by the names of the manifest. */
val RUNTIMES = setOf("litert", "executorch")

/** Loads files on so many threads of the CPU. */
fun loaderOf(threads: Int) = Loader { file, variant, input ->
    when (variant.runtime) {
        "litert" -> LiteRtSession(file, variant.entry, threads)
        "executorch" -> ExecuTorchSession(file, variant.entry, input, threads)
        else -> throw ClassifierError("${variant.name} is for ${variant.runtime}: this app has $RUNTIMES")
    }
}
