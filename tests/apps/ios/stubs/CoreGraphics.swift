import Foundation

public enum CGImageAlphaInfo: UInt32 { case noneSkipLast = 5 }

public final class CGColorSpace {
    public static var sRGB: String { fatalError() }
    public init?(name: String) {}
}

public final class CGContext {
    public init?(
        data: UnsafeMutableRawPointer?, width: Int, height: Int, bitsPerComponent: Int, bytesPerRow: Int,
        space: CGColorSpace, bitmapInfo: UInt32
    ) {}
    public var data: UnsafeMutableRawPointer? { fatalError() }
    public func translateBy(x: CGFloat, y: CGFloat) {}
    public func scaleBy(x: CGFloat, y: CGFloat) {}
}
