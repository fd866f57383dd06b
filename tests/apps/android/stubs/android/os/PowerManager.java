package android.os;

/** Of Android 10, where the android.jar that is compiled against is of Android 6. */
public final class PowerManager {
    public static final int THERMAL_STATUS_MODERATE = 2;

    private PowerManager() {}

    public int getCurrentThermalStatus() {
        throw new UnsupportedOperationException();
    }
}
