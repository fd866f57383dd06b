package org.maestroedge.classifier

import android.annotation.SuppressLint
import android.content.Context
import android.graphics.Bitmap
import android.graphics.SurfaceTexture
import android.hardware.camera2.CameraAccessException
import android.hardware.camera2.CameraCaptureSession
import android.hardware.camera2.CameraCharacteristics
import android.hardware.camera2.CameraDevice
import android.hardware.camera2.CameraManager
import android.view.Surface
import android.view.TextureView

/** The back camera, in a view of 3 : 4 of an upright activity; all of it on the main thread. */
class Camera(
    private val preview: TextureView,
    private val onFrame: () -> Unit,
    private val onFailure: (String) -> Unit,
) : AutoCloseable, TextureView.SurfaceTextureListener {
    private val manager = preview.context.getSystemService(Context.CAMERA_SERVICE) as CameraManager
    private val bitmap = Bitmap.createBitmap(HEIGHT, WIDTH, Bitmap.Config.ARGB_8888)
    private var device: CameraDevice? = null
    private var isClosed = false

    /** The camera permission must have been given. */
    fun open() {
        preview.surfaceTextureListener = this
        preview.surfaceTexture?.let { connect(it) }
    }

    /** What is on the screen, upright, as Android turned it. */
    fun frame(): Image = preview.getBitmap(bitmap).toImage()

    override fun close() {
        isClosed = true
        preview.surfaceTextureListener = null
        device?.close()
        device = null
    }

    override fun onSurfaceTextureAvailable(surface: SurfaceTexture, width: Int, height: Int) = connect(surface)

    override fun onSurfaceTextureSizeChanged(surface: SurfaceTexture, width: Int, height: Int) = Unit

    override fun onSurfaceTextureDestroyed(surface: SurfaceTexture) = true

    override fun onSurfaceTextureUpdated(surface: SurfaceTexture) = onFrame()

    @SuppressLint("MissingPermission") // open() asks for it
    private fun connect(texture: SurfaceTexture) = reporting {
        texture.setDefaultBufferSize(WIDTH, HEIGHT)
        manager.openCamera(backCamera(), Opened(Surface(texture)), null)
    }

    private fun backCamera(): String {
        val ids = manager.cameraIdList
        return ids.firstOrNull {
            val facing = manager.getCameraCharacteristics(it).get(CameraCharacteristics.LENS_FACING)
            facing == CameraCharacteristics.LENS_FACING_BACK
        } ?: ids.firstOrNull() ?: throw ClassifierError("this phone has no camera: choose a picture")
    }

    private inner class Opened(private val surface: Surface) : CameraDevice.StateCallback() {
        override fun onOpened(camera: CameraDevice) {
            if (isClosed) return camera.close()
            device = camera
            reporting { camera.createCaptureSession(listOf(surface), Configured(surface), null) }
        }

        override fun onDisconnected(camera: CameraDevice) = camera.close()

        override fun onError(camera: CameraDevice, error: Int) {
            camera.close()
            onFailure("the camera failed with error $error: close other apps that use it")
        }
    }

    private inner class Configured(private val surface: Surface) : CameraCaptureSession.StateCallback() {
        override fun onConfigured(session: CameraCaptureSession) {
            val camera = device ?: return
            reporting {
                val request = camera.createCaptureRequest(CameraDevice.TEMPLATE_PREVIEW)
                request.addTarget(surface)
                session.setRepeatingRequest(request.build(), null, null)
            }
        }

        override fun onConfigureFailed(session: CameraCaptureSession) =
            onFailure("the camera gives no images of $WIDTH x $HEIGHT: choose a picture")
    }

    private fun reporting(call: () -> Unit) {
        try {
            call()
        } catch (error: CameraAccessException) {
            onFailure("the camera cannot be used (${error.message}): close other apps that use it")
        } catch (error: ClassifierError) {
            onFailure(error.message.orEmpty())
        }
    }

    private companion object {
        const val WIDTH = 640 // as the sensor lies: on its side
        const val HEIGHT = 480
    }
}
