// Files of a bundle, checked before anything is loaded. sha256 comes from outside: CryptoKit is Apple's alone.

import Foundation

/// A bundle folder whose manifest could be read; its files are checked when they are loaded.
public struct OpenBundle: Sendable {
    public let folder: URL
    public let manifest: Manifest
    public let manifestSha256: String

    public init(at folder: URL, sha256: (Data) -> String) throws {
        let url = folder.appendingPathComponent("manifest.json")
        guard let data = try? Data(contentsOf: url) else {
            throw Failure("\(folder.lastPathComponent)/manifest.json cannot be read: copy a bundle there")
        }
        self.folder = folder
        manifest = try Manifest(manifest: data)
        manifestSha256 = sha256(data)
    }
}

/// The variant's file, once it is known to lie in the bundle and to be the one that was measured.
public func checkedFile(in bundle: URL, of variant: Variant, sha256: (Data) -> String) throws -> URL {
    let root = bundle.standardizedFileURL.resolvingSymlinksInPath()
    let url = root.appendingPathComponent(variant.file)
    let isPlain = !variant.file.contains { "/\\".contains($0) } && !["", ".", ".."].contains(variant.file)
    guard isPlain, parts(url) == root.pathComponents + [variant.file] else {
        throw Failure("'\(variant.file)' leaves the bundle folder: make the bundle again")
    }
    let found = try isFolder(url) ? packageDigest(url, sha256: sha256) : fileDigest(url, sha256: sha256)
    guard found.sizeBytes == variant.sizeBytes else {
        throw Failure("\(variant.file): \(found.sizeBytes) bytes, not \(variant.sizeBytes): copy the bundle again")
    }
    guard found.sha256 == variant.sha256 else {
        throw Failure("\(variant.file): its sha256 is not the manifest's: copy the bundle again")
    }
    return url
}

public struct Digest: Equatable {
    public let sha256: String
    public let sizeBytes: Int
}

/// sha256 of a package: that of its lines "sha256  relative/path" sorted by path, as the exporter says it.
public func packageDigest(_ folder: URL, sha256: (Data) -> String) throws -> Digest {
    let root = parts(folder)
    guard let items = FileManager.default.enumerator(at: folder, includingPropertiesForKeys: nil) else {
        throw Failure("\(folder.lastPathComponent) cannot be read: copy it again")
    }
    var digests: [String: Digest] = [:]
    for case let item as URL in items where !item.hasDirectoryPath {
        digests[parts(item).dropFirst(root.count).joined(separator: "/")] = try fileDigest(item, sha256: sha256)
    }
    // Python sorts by code point; Swift's own order of strings is another one beyond ASCII.
    let names = digests.keys.sorted { $0.unicodeScalars.lexicographicallyPrecedes($1.unicodeScalars) }
    let lines = names.map { "\(digests[$0]!.sha256)  \($0)" }.joined(separator: "\n")
    return Digest(sha256: sha256(Data(lines.utf8)), sizeBytes: digests.values.reduce(0) { $0 + $1.sizeBytes })
}

private func fileDigest(_ url: URL, sha256: (Data) -> String) throws -> Digest {
    let content: Data
    do {
        content = try Data(contentsOf: url, options: .mappedIfSafe)
    } catch {
        throw Failure("\(url.lastPathComponent) is missing or cannot be read: copy the bundle again")
    }
    return Digest(sha256: sha256(content), sizeBytes: content.count)
}

private func isFolder(_ url: URL) -> Bool {
    var isFolder: ObjCBool = false
    return FileManager.default.fileExists(atPath: url.path, isDirectory: &isFolder) && isFolder.boolValue
}

/// Where a path really leads: links are followed.
private func parts(_ url: URL) -> [String] {
    url.standardizedFileURL.resolvingSymlinksInPath().pathComponents
}
