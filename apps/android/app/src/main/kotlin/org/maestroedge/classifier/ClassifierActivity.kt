package org.maestroedge.classifier

import android.Manifest.permission
import android.app.Activity
import android.content.Intent
import android.content.pm.PackageManager
import android.graphics.Bitmap
import android.graphics.ImageDecoder
import android.net.Uri
import android.os.Bundle as State
import android.view.Gravity
import android.view.TextureView
import android.view.View
import android.widget.Button
import android.widget.FrameLayout
import android.widget.ImageView
import android.widget.SeekBar
import android.widget.TextView
import java.io.IOException
import java.util.concurrent.Executors
import java.util.concurrent.atomic.AtomicBoolean
import kotlin.math.ceil
import kotlin.math.sqrt

/** The screen: a picture or the camera, a budget, the variant that keeps it, its labels and times. */
class ClassifierActivity : Activity() {
    private val worker = Executors.newSingleThreadExecutor()
    private val isBusy = AtomicBoolean() // a frame of the camera is dropped while another is classified

    // The worker's alone.
    private var classifier: Classifier? = null
    private var picture: Image? = null

    // The main thread's.
    private var steps: List<Double?> = listOf(null)
    private var camera: Camera? = null
    private val choose by lazy { findViewById(R.id.choose) as Button }
    private val preview by lazy { findViewById(R.id.preview) as TextureView }
    private val still by lazy { findViewById(R.id.picture) as ImageView }
    private val budget by lazy { findViewById(R.id.budget) as SeekBar }
    private val cameraButton by lazy { findViewById(R.id.camera) as Button }

    override fun onCreate(state: State?) {
        super.onCreate(state)
        setContentView(R.layout.classifier)
        choose.setOnClickListener { askForPicture() }
        cameraButton.setOnClickListener { if (camera == null) askForCamera() else stopCamera() }
        budget.setOnSeekBarChangeListener(Slider())
        work { classifier -> classifier.budgetSteps.let { runOnUiThread { offer(it) } } }
    }

    override fun onStop() {
        stopCamera()
        super.onStop()
    }

    override fun onDestroy() {
        worker.execute { classifier?.close() }
        worker.shutdown()
        super.onDestroy()
    }

    // --- the worker

    private fun work(task: (Classifier) -> Unit) = worker.execute {
        try {
            val ready = classifier ?: Classifier(bundle(), device(), RUNTIMES, loaderOf(threads = 1))
            classifier = ready
            task(ready)
        } catch (error: ClassifierError) {
            runOnUiThread { say(error.message.orEmpty()) }
        }
    }

    private fun classifyPicture(classifier: Classifier) {
        val chosen = picture ?: return
        var changes = 0
        do {
            val isHot = isHot()
            tell(classifier.classify(chosen, Classifier.WINDOW_RUNS), isHot)
        } while (classifier.reconsider(isHot) && ++changes < MOST_CHANGES)
    }

    private fun classifyFrame() {
        val frame = camera?.takeIf { isBusy.compareAndSet(false, true) }?.frame() ?: return
        work { classifier ->
            try {
                val isHot = isHot()
                tell(classifier.classify(frame), isHot)
                classifier.reconsider(isHot)
            } finally {
                isBusy.set(false)
            }
        }
    }

    private fun decode(uri: Uri): Bitmap = try {
        ImageDecoder.decodeBitmap(ImageDecoder.createSource(contentResolver, uri)) { decoder, info, _ ->
            decoder.allocator = ImageDecoder.ALLOCATOR_SOFTWARE // the pixels of a hardware bitmap cannot be read
            val pixels = info.size.width.toDouble() * info.size.height
            decoder.setTargetSampleSize(ceil(sqrt(pixels / MOST_PIXELS)).toInt())
        }
    } catch (error: IOException) {
        throw ClassifierError("not an image that Android reads (${error.message}): choose another", error)
    }

    // --- the picture and the camera

    private fun askForPicture() {
        stopCamera()
        val ask = Intent(Intent.ACTION_OPEN_DOCUMENT).addCategory(Intent.CATEGORY_OPENABLE).setType("image/*")
        startActivityForResult(ask, 0)
    }

    override fun onActivityResult(request: Int, result: Int, data: Intent?) {
        val uri = data?.data ?: return
        work { classifier ->
            val bitmap = decode(uri)
            runOnUiThread { still.setImageBitmap(bitmap) }
            picture = bitmap.toImage()
            classifyPicture(classifier)
        }
    }

    private fun askForCamera() {
        if (checkSelfPermission(permission.CAMERA) == PackageManager.PERMISSION_GRANTED) startCamera()
        else requestPermissions(arrayOf(permission.CAMERA), 0)
    }

    override fun onRequestPermissionsResult(request: Int, permissions: Array<String>, results: IntArray) {
        if (PackageManager.PERMISSION_GRANTED in results) startCamera() else say(getString(R.string.no_camera))
    }

    private fun startCamera() {
        val room = preview.parent as View
        val width = minOf(room.width, room.height * 3 / 4)
        preview.layoutParams = FrameLayout.LayoutParams(width, width * 4 / 3, Gravity.CENTER)
        preview.visibility = View.VISIBLE
        still.visibility = View.GONE
        cameraButton.setText(R.string.stop)
        camera = Camera(preview, ::classifyFrame, ::say).also { it.open() }
    }

    private fun stopCamera() {
        camera?.close()
        camera = null
        preview.visibility = View.GONE
        still.visibility = View.VISIBLE
        cameraButton.setText(R.string.camera)
    }

    // --- the screen

    private fun offer(budgets: List<Double?>) {
        steps = budgets
        budget.max = budgets.lastIndex
        budget.progress = budgets.lastIndex
        tellBudget()
    }

    private fun tellBudget() {
        val ms = steps.getOrNull(budget.progress)
        text(R.id.budget_text, if (ms == null) getString(R.string.no_budget) else getString(R.string.budget, ms))
    }

    /** From the worker. */
    private fun tell(outcome: Outcome, isHot: Boolean) = runOnUiThread {
        val variant = outcome.variant
        val (low, all, percent) = Triple(variant.lowRankLayers, variant.layers, 100 * variant.accuracy)
        val what = getString(R.string.variant, variant.name, variant.runtime, low, all, percent)
        text(R.id.variant, if (isHot) what + getString(R.string.hot) else what)
        val lines = outcome.guesses.map { getString(R.string.guess, 100 * it.probability, it.label) }
        text(R.id.guesses, lines.joinToString("\n"))
        text(R.id.latency, getString(R.string.latency, outcome.p50Ms, outcome.p90Ms, outcome.runs, variant.p50Ms))
        say("")
    }

    private fun say(message: String) = text(R.id.message, message)

    private fun text(id: Int, text: String) {
        (findViewById(id) as TextView).text = text
    }

    private inner class Slider : SeekBar.OnSeekBarChangeListener {
        override fun onProgressChanged(bar: SeekBar, progress: Int, fromUser: Boolean) = tellBudget()

        override fun onStartTrackingTouch(bar: SeekBar) = Unit

        override fun onStopTrackingTouch(bar: SeekBar) {
            val budgetMs = steps.getOrNull(bar.progress)
            val isLive = camera != null
            work { classifier ->
                classifier.allow(budgetMs)
                if (!isLive) classifyPicture(classifier)
            }
        }
    }

    private companion object {
        const val MOST_PIXELS = 16e6
        const val MOST_CHANGES = 3
    }
}
