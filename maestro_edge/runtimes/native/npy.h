// Arrays in memory and as numpy writes them: little-endian, in C order.
#pragma once

#include <executorch/runtime/core/portable_type/scalar_type.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <stdexcept>
#include <string>
#include <vector>

#include "text.h"

using executorch::aten::ScalarType;
using executorch::aten::SizesType;
using Shape = std::vector<SizesType>;

struct Array {
  ScalarType type = ScalarType::Float;
  Shape shape;
  std::vector<uint8_t> bytes;
};

inline const std::map<ScalarType, std::string> NUMPY_TYPES = {
    {ScalarType::Float, "<f4"}, {ScalarType::Double, "<f8"}, {ScalarType::Half, "<f2"}, {ScalarType::Long, "<i8"},
    {ScalarType::Int, "<i4"},   {ScalarType::Char, "|i1"},   {ScalarType::Byte, "|u1"}, {ScalarType::Bool, "|b1"},
};

inline std::string numpy_type(ScalarType type) {
  const auto found = NUMPY_TYPES.find(type);
  if (found == NUMPY_TYPES.end()) {
    throw std::runtime_error(std::string("numpy has no type for ") + executorch::runtime::toString(type));
  }
  return found->second;
}

inline size_t size_of(ScalarType type) { return static_cast<size_t>(numpy_type(type).back() - '0'); }

inline size_t elements(const Shape& shape) {
  size_t product = 1;
  for (const SizesType size : shape) product *= static_cast<size_t>(size);
  return product;
}

inline std::string shape_text(const Shape& shape) { return "(" + joined(shape, ", ") + ")"; }

inline Array read_npy(const std::string& path) {
  const std::string content = read_file(path);
  const auto wrong = [&](const std::string& what) { return std::runtime_error(base_name(path) + ": " + what); };
  if (content.size() < 12 || content.compare(0, 6, "\x93NUMPY") != 0) throw wrong("no .npy file");
  uint32_t length = 0;  // 2 bytes in version 1, 4 in later ones; little-endian as every device here
  const size_t start = content[6] == 1 ? 10 : 12;
  std::memcpy(&length, content.data() + 8, start - 8);
  if (content.size() - start < length) throw wrong("truncated");
  const std::string header = content.substr(start, length);
  const size_t shape = header.find("'shape': (");
  if (shape == std::string::npos || header.find("'fortran_order': False") == std::string::npos) {
    throw wrong("not in C order");
  }
  Array array;
  if (header.find("'<i8'") != std::string::npos) {
    array.type = ScalarType::Long;
  } else if (header.find("'<f4'") == std::string::npos) {
    throw wrong("neither float32 nor int64");
  }
  for (const char* at = header.c_str() + shape + std::strlen("'shape': ("); *at != ')' && *at != '\0';) {
    char* end = nullptr;
    array.shape.push_back(static_cast<SizesType>(std::strtol(at, &end, 10)));
    at = end + std::strspn(end, ", ");
    if (end == at) break;
  }
  array.bytes.assign(content.begin() + static_cast<ptrdiff_t>(start + length), content.end());
  if (array.shape.empty() || array.bytes.size() != elements(array.shape) * size_of(array.type)) {
    throw wrong("its size is not that of its shape");
  }
  return array;
}

inline void write_npy(const std::string& path, const Array& array) {
  std::string header = "{'descr': '" + numpy_type(array.type) + "', 'fortran_order': False, 'shape': (" +
                       joined(array.shape, ", ") + ",), }";
  header.resize((header.size() + 10 + 1 + 63) / 64 * 64 - 10 - 1, ' ');
  header += '\n';
  std::string content("\x93NUMPY\x01\x00", 8);
  content += static_cast<char>(header.size() & 0xff);
  content += static_cast<char>(header.size() >> 8);
  content += header;
  content.append(array.bytes.begin(), array.bytes.end());
  write_file(path, content.data(), content.size());
}
