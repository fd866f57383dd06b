package android.graphics;

import android.content.ContentResolver;
import android.net.Uri;
import android.util.Size;
import java.io.IOException;

/** Of Android 9, where the android.jar that is compiled against is of Android 6. */
public final class ImageDecoder implements AutoCloseable {
    public static final int ALLOCATOR_SOFTWARE = 1;

    private ImageDecoder() {}

    public abstract static class Source {}

    public interface ImageInfo {
        Size getSize();
    }

    public interface OnHeaderDecodedListener {
        void onHeaderDecoded(ImageDecoder decoder, ImageInfo info, Source source);
    }

    public static Source createSource(ContentResolver resolver, Uri uri) {
        throw new UnsupportedOperationException();
    }

    public static Bitmap decodeBitmap(Source source, OnHeaderDecodedListener listener) throws IOException {
        throw new UnsupportedOperationException();
    }

    public int getAllocator() {
        throw new UnsupportedOperationException();
    }

    public void setAllocator(int allocator) {
        throw new UnsupportedOperationException();
    }

    public void setTargetSampleSize(int sampleSize) {
        throw new UnsupportedOperationException();
    }

    @Override
    public void close() {
        throw new UnsupportedOperationException();
    }
}
