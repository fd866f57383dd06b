import Foundation
import UIKit
import UniformTypeIdentifiers

@MainActor public protocol View {
    associatedtype Body: View
    @ViewBuilder var body: Body { get }
}
extension Never: View { public var body: Never { fatalError() } }
extension Optional: View where Wrapped: View { public var body: Never { fatalError() } }

public struct Content: View { public var body: Never { fatalError() } }

@resultBuilder @MainActor public enum ViewBuilder {
    public static func buildBlock<V: View>(_ view: V) -> V { view }
    public static func buildBlock<each V: View>(_ views: repeat each V) -> Content { fatalError() }
    public static func buildIf<V: View>(_ view: V?) -> V? { view }
}

@MainActor public protocol Scene {
    associatedtype Body: Scene
    var body: Body { get }
}
extension Never: Scene {}
public struct WindowGroup: Scene {
    public init<V: View>(@ViewBuilder _ content: () -> V) {}
    public var body: Never { fatalError() }
}
@MainActor public protocol App {
    associatedtype Body: Scene
    var body: Body { get }
    init()
}
extension App { public static func main() {} }

// MARK: - State

@propertyWrapper public struct Binding<Value> {
    public init(get: @escaping @MainActor () -> Value, set: @escaping @MainActor (Value) -> Void) {}
    public var wrappedValue: Value {
        get { fatalError() }
        nonmutating set {}
    }
}
@propertyWrapper public struct State<Value> {
    public init(wrappedValue: Value) {}
    public var wrappedValue: Value {
        get { fatalError() }
        nonmutating set {}
    }
    public var projectedValue: Binding<Value> { fatalError() }
}
extension State where Value: ExpressibleByNilLiteral { public init() {} }

public enum ScenePhase { case background, inactive, active }
public struct EnvironmentValues { public var scenePhase: ScenePhase { fatalError() } }
@propertyWrapper public struct Environment<Value> {
    public init(_ path: KeyPath<EnvironmentValues, Value>) {}
    public var wrappedValue: Value { fatalError() }
}

// MARK: - Views

public struct Text: View {
    public init(_ text: String) {}
    public var body: Never { fatalError() }
}
public struct Image: View {
    public init(uiImage: UIImage) {}
    public func resizable() -> Image { self }
    public var body: Never { fatalError() }
}
public struct Form: View {
    public init<V: View>(@ViewBuilder content: () -> V) {}
    public var body: Never { fatalError() }
}
public struct VStack: View {
    public init<V: View>(spacing: CGFloat?, @ViewBuilder content: () -> V) {}
    public var body: Never { fatalError() }
}
public struct Section: View {
    public init<V: View>(_ title: String, @ViewBuilder content: () -> V) {}
    public init<V: View>(@ViewBuilder content: () -> V) {}
    public var body: Never { fatalError() }
}
public struct Button: View {
    public init(_ title: String, action: @escaping @MainActor () -> Void) {}
    public var body: Never { fatalError() }
}
public struct ForEach<Element: Identifiable>: View {
    public init<V: View>(_ data: [Element], @ViewBuilder content: @escaping (Element) -> V) {}
    public var body: Never { fatalError() }
}
public struct LabeledContent: View {
    public init(_ title: String, value: String) {}
    public var body: Never { fatalError() }
}
public struct Toggle: View {
    public init(_ title: String, isOn: Binding<Bool>) {}
    public var body: Never { fatalError() }
}
public struct Slider: View {
    public init(value: Binding<Double>, in bounds: ClosedRange<Double>) {}
    public var body: Never { fatalError() }
}
public struct Picker: View {
    public init<S: Hashable, V: View>(_ title: String, selection: Binding<S>, @ViewBuilder content: () -> V) {}
    public var body: Never { fatalError() }
}
public struct ProgressView: View {
    public init(value: Double) {}
    public var body: Never { fatalError() }
}
public struct ShareLink: View {
    public init(_ title: String, item: URL) {}
    public var body: Never { fatalError() }
}

extension View {
    public func disabled(_ isDisabled: Bool) -> some View { self }
    public func padding() -> some View { self }
    public func scaledToFit() -> some View { self }
    public func tag<V: Hashable>(_ tag: V) -> some View { self }
    public func task(@_inheritActorContext _ action: @escaping @Sendable () async -> Void) -> some View { self }
    public func onChange<V: Equatable>(of value: V, _ action: @escaping () -> Void) -> some View { self }
    public func fullScreenCover<V: View>(
        isPresented: Binding<Bool>, @ViewBuilder content: @escaping () -> V
    ) -> some View { self }
    public func fileImporter(
        isPresented: Binding<Bool>, allowedContentTypes: [UTType],
        onCompletion: @escaping (Result<URL, any Error>) -> Void
    ) -> some View { self }
}

// MARK: - UIKit in SwiftUI

public struct UIViewControllerRepresentableContext<Representable: UIViewControllerRepresentable> {
    public var coordinator: Representable.Coordinator { fatalError() }
}
@MainActor public protocol UIViewControllerRepresentable: View where Body == Never {
    associatedtype UIViewControllerType: UIViewController
    associatedtype Coordinator = Void
    typealias Context = UIViewControllerRepresentableContext<Self>
    func makeUIViewController(context: Context) -> UIViewControllerType
    func updateUIViewController(_ controller: UIViewControllerType, context: Context)
    func makeCoordinator() -> Coordinator
}
extension UIViewControllerRepresentable { public var body: Never { fatalError() } }
