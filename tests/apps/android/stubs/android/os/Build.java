package android.os;

/** Of Android 12, where the android.jar that is compiled against is of Android 6. */
public class Build {
    public static final String MANUFACTURER = null;
    public static final String MODEL = null;
    public static final String FINGERPRINT = null;
    public static final String SOC_MANUFACTURER = null;
    public static final String SOC_MODEL = null;

    public static class VERSION {
        public static final int SDK_INT = Integer.parseInt("31"); // no constant: the compiler would keep one branch
        public static final String RELEASE = null;
    }
}
