public struct UTType: Sendable {
    public static var folder: UTType { fatalError() }
}
