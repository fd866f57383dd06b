package org.maestroedge.classifier

import android.app.Activity
import android.os.Bundle as State
import android.util.Log
import android.view.WindowManager
import android.widget.TextView
import java.text.SimpleDateFormat
import java.util.Date
import java.util.Locale
import java.util.TimeZone
import kotlin.concurrent.thread
import org.json.JSONObject

/** Times all variants and writes a file for adb to pull; an activity, because in front it gets the big cores. */
class BenchmarkActivity : Activity() {
    override fun onCreate(state: State?) {
        super.onCreate(state)
        window.addFlags(WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON)
        setContentView(TextView(this).apply { setText(R.string.measuring) })
        thread {
            try {
                Log.i(TAG, "bench: wrote ${measure()}")
            } catch (error: ClassifierError) {
                Log.e(TAG, "bench: ${error.message}")
            }
            runOnUiThread { finish() }
        }
    }

    private fun measure(): String {
        val folder = getExternalFilesDir(null) ?: throw ClassifierError("no external storage: unlock the phone")
        val file = resultFile(folder, intent.getStringExtra("bench").orEmpty())
        val schedule = Schedule(number("runs", 50, 100_000), number("threads", 1, 16))
        val before = thermalStatus()
        val found = Benchmark(bundle(), RUNTIMES, loaderOf(schedule.threads)).run(schedule)
        val after = thermalStatus()
        found.put("created", now())
            .put("device", deviceFacts(phone(), Kernel(), maxOf(before, after) > 0))
            .put("thermal_status", JSONObject().put("before", before).put("after", after))
        writeAtomically(file, found.toString(1))
        return file.path
    }

    private fun number(name: String, default: Int, most: Int): Int {
        val given = intent.getIntExtra(name, default)
        if (given !in 1..most) throw ClassifierError("$name is $given: give 1 to $most")
        return given
    }

    private fun now(): String {
        val format = SimpleDateFormat("yyyy-MM-dd'T'HH:mm:ss'Z'", Locale.ROOT)
        format.timeZone = TimeZone.getTimeZone("UTC")
        return format.format(Date())
    }

    private companion object {
        const val TAG = "maestro-edge"
    }
}
