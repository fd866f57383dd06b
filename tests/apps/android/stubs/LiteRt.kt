// What the app calls of com.google.ai.edge.litert:litert 2.3.0, whose jar lies in Google's Maven alone: for compiling.
package com.google.ai.edge.litert

class LiteRtException(message: String) : Exception(message)

enum class Accelerator { NONE, CPU, GPU, NPU }

abstract class JniHandle : AutoCloseable {
    final override fun close() = throw NotImplementedError()
}

class TensorBuffer : JniHandle() {
    fun writeFloat(data: FloatArray): Unit = throw NotImplementedError("${data.size} floats")
    fun readFloat(): FloatArray = throw NotImplementedError()
}

class CompiledModel : JniHandle() {
    data class CpuOptions(
        val numThreads: Int? = null,
        val xnnPackFlags: Int? = null,
        val xnnPackWeightCachePath: String? = null,
    )

    class Options(vararg val accelerators: Accelerator) {
        var cpuOptions: CpuOptions? = null
    }

    fun createInputBuffers(signatureIndex: Int = 0): List<TensorBuffer> = throw NotImplementedError("$signatureIndex")
    fun createInputBuffers(signature: String): List<TensorBuffer> = throw NotImplementedError(signature)
    fun createOutputBuffers(signatureIndex: Int = 0): List<TensorBuffer> = throw NotImplementedError("$signatureIndex")
    fun createOutputBuffers(signature: String): List<TensorBuffer> = throw NotImplementedError(signature)

    fun run(inputs: List<TensorBuffer>, outputs: List<TensorBuffer>, signatureIndex: Int = 0): Unit =
        throw NotImplementedError("$inputs $outputs $signatureIndex")

    fun run(inputs: List<TensorBuffer>, outputs: List<TensorBuffer>, signature: String): Unit =
        throw NotImplementedError("$inputs $outputs $signature")

    companion object {
        @JvmStatic
        @JvmOverloads
        fun create(filePath: String, options: Options = Options(Accelerator.CPU)): CompiledModel =
            throw NotImplementedError("$filePath $options")
    }
}
