@_exported import CoreGraphics
import Foundation

public final class UIImage: Sendable {
    public init?(data: Data) {}
    public var size: CGSize { fatalError() }
    public var scale: CGFloat { fatalError() }
    public func draw(in rect: CGRect) {}
}

public func UIGraphicsPushContext(_ context: CGContext) {}
public func UIGraphicsPopContext() {}

@MainActor public final class UIDevice {
    public static var current: UIDevice { fatalError() }
    public var systemName: String { fatalError() }
    public var systemVersion: String { fatalError() }
}

@MainActor public final class UIApplication {
    public static var shared: UIApplication { fatalError() }
    public var isIdleTimerDisabled = false
}

@MainActor open class UIViewController {
    public init() {}
    public func dismiss(animated: Bool) {}
}

@MainActor public protocol UINavigationControllerDelegate: AnyObject {}

@MainActor public protocol UIImagePickerControllerDelegate: AnyObject {
    func imagePickerController(
        _ picker: UIImagePickerController,
        didFinishPickingMediaWithInfo info: [UIImagePickerController.InfoKey: Any])
}

@MainActor public final class UIImagePickerController: UIViewController {
    public enum SourceType { case camera }
    public struct InfoKey: Hashable, Sendable {
        public static let originalImage = InfoKey()
    }
    public static func isSourceTypeAvailable(_ type: SourceType) -> Bool { fatalError() }
    public var sourceType: SourceType {
        get { fatalError() }
        set {}
    }
    public weak var delegate: (any UIImagePickerControllerDelegate & UINavigationControllerDelegate)?
}
