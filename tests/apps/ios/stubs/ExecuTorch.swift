public protocol Scalar {}
extension Float: Scalar {}
public protocol ValueConvertible {}
public protocol ValueSequenceConstructible {}

public final class Tensor<T: Scalar>: ValueConvertible, ValueSequenceConstructible {
    public init(_ scalars: [T], shape: [Int] = []) {}
    public func scalars() -> [T] { fatalError() }
}

public final class Module {
    public init(filePath: String) {}
    public func load(_ method: String) throws {}
    public func execute<Output: ValueSequenceConstructible>(
        _ method: String, _ input: any ValueConvertible
    ) throws -> Output { fatalError() }
}
