package org.maestroedge.classifier

import java.io.File
import org.pytorch.executorch.EValue
import org.pytorch.executorch.Module
import org.pytorch.executorch.Tensor

/** A .pte file; `entry` is one of its methods, null its `forward`. */
class ExecuTorchSession(
    private val file: File,
    private val entry: String?,
    input: InputSpec,
    threads: Int,
) : Session {
    private val module = translated { Module.load(file.path, Module.LOAD_MODE_MMAP, threads) }
    private val fed = Tensor.allocateFloatBuffer(input.channels * input.height * input.width)
    private val tensor = EValue.from(Tensor.fromBlob(fed, input.shape))

    override fun run(image: FloatArray): FloatArray = translated {
        fed.rewind()
        fed.put(image)
        module.execute(entry ?: "forward", tensor).first().toTensor().getDataAsFloatArray()
    }

    override fun close() = module.destroy()

    /** Its errors are unchecked, and of several classes. */
    private fun <T> translated(call: () -> T): T = try {
        call()
    } catch (error: RuntimeException) {
        throw ClassifierError("executorch cannot run ${file.name}: ${error.message}: make the bundle again", error)
    }
}
