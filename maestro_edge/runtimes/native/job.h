// A job: options, and files with the names that the answer calls them by.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "text.h"

struct File {
  std::string name, path;  // the name is JSON already
};

class Job {
 public:
  explicit Job(const std::string& path) {
    std::istringstream lines(read_file(path));
    std::string line, name;
    while (std::getline(lines, line)) {
      const size_t space = std::min(line.find(' '), line.size());
      const std::string key = line.substr(0, space);
      const std::string value = line.substr(std::min(space + 1, line.size()));
      if (key == "name") {
        name = value;
      } else if (key == "file") {
        files.push_back({name, value});
      } else {
        options_[key] = value;
      }
    }
  }

  bool has(const std::string& key) const { return options_.count(key) > 0; }

  std::string text(const std::string& key) const {
    const auto found = options_.find(key);
    if (found == options_.end()) throw std::runtime_error("the job names no " + key);
    return found->second;
  }

  double number(const std::string& key) const {
    const std::string value = text(key);
    char* end = nullptr;
    const double result = std::strtod(value.c_str(), &end);
    if (value.empty() || *end != '\0') throw std::runtime_error("the job's " + key + " is no number: " + value);
    return result;
  }

  int count(const std::string& key) const { return static_cast<int>(number(key)); }

  const std::string& only_file() const {
    if (files.size() != 1) throw std::runtime_error(text("task") + " takes one file");
    return files[0].path;
  }

  std::vector<File> files;

 private:
  std::map<std::string, std::string> options_;
};
