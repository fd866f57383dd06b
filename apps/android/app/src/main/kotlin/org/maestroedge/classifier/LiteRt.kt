package org.maestroedge.classifier

import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.LiteRtException
import java.io.File

/** A .tflite file on the CPU; `entry` is one of its signatures, null its first. */
class LiteRtSession(private val file: File, private val entry: String?, threads: Int) : Session {
    private val model = translated(file) { CompiledModel.create(file.path, options(threads)) }
    private val inputs = translated(file) {
        if (entry == null) model.createInputBuffers() else model.createInputBuffers(entry)
    }
    private val outputs = translated(file) {
        if (entry == null) model.createOutputBuffers() else model.createOutputBuffers(entry)
    }

    override fun run(image: FloatArray): FloatArray = translated(file) {
        inputs.first().writeFloat(image)
        if (entry == null) model.run(inputs, outputs) else model.run(inputs, outputs, entry)
        outputs.first().readFloat()
    }

    override fun close() {
        (inputs + outputs).forEach { it.close() }
        model.close()
    }

    private fun options(threads: Int) = CompiledModel.Options(Accelerator.CPU).apply {
        cpuOptions = CompiledModel.CpuOptions(numThreads = threads)
    }

    private fun <T> translated(file: File, call: () -> T): T = try {
        call()
    } catch (error: LiteRtException) {
        throw ClassifierError("litert cannot run ${file.name}: ${error.message}: make the bundle again", error)
    }
}
