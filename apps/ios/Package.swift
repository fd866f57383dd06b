// swift-tools-version: 6.0
// What the apps share that needs no Apple framework, so that its tests also run on Linux: `swift test`.

import PackageDescription

let package = Package(
    name: "MaestroBundle",
    platforms: [.iOS(.v18), .macOS(.v15)],
    products: [.library(name: "MaestroBundle", targets: ["MaestroBundle"])],
    targets: [
        .target(name: "MaestroBundle"),
        .testTarget(name: "MaestroBundleTests", dependencies: ["MaestroBundle"]),
    ]
)
