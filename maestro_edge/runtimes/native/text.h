// Files and text: whole files in, whole files out, and the little JSON that an answer takes.
#pragma once

#include <cstdio>
#include <fstream>
#include <iterator>
#include <sstream>
#include <stdexcept>
#include <string>

inline std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string content{std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
  if (!file) throw std::runtime_error("cannot read " + path);
  return content;
}

inline void write_file(const std::string& path, const void* data, size_t size) {
  const std::string aside = path + ".part";
  std::ofstream file(aside, std::ios::binary);
  file.write(static_cast<const char*>(data), static_cast<std::streamsize>(size));
  file.close();
  if (!file || std::rename(aside.c_str(), path.c_str()) != 0) {
    throw std::runtime_error("cannot write " + path + ": is the storage full?");
  }
}

inline std::string base_name(const std::string& path) { return path.substr(path.rfind('/') + 1); }

inline std::string json_string(const std::string& text) {
  std::string quoted = "\"";
  for (const unsigned char c : text) {
    char code[8];
    std::snprintf(code, sizeof code, c < 0x20 || c == '"' || c == '\\' ? "\\u%04x" : "%c", c);
    quoted += code;
  }
  return quoted + "\"";
}

template <typename Range>
std::string joined(const Range& values, const char* between) {
  std::ostringstream text;
  const char* before = "";
  for (const auto& value : values) {
    text << before << value;
    before = between;
  }
  return text.str();
}
