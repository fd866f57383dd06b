// What a run meets besides itself: the cores it is bound to, other programs, memory and energy. Linux only.
#pragma once

#include <glob.h>
#include <sched.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using Clock = std::chrono::steady_clock;

inline double since_ms(Clock::time_point begin) {
  return std::chrono::duration<double, std::milli>(Clock::now() - begin).count();
}

// Threads that are started later inherit it.
inline void bind_to(const std::string& cores) {
  cpu_set_t chosen;
  CPU_ZERO(&chosen);
  std::istringstream numbers(cores);
  for (int core = 0; numbers >> core;) CPU_SET(static_cast<size_t>(core), &chosen);
  if (CPU_COUNT(&chosen) > 0 && sched_setaffinity(0, sizeof chosen, &chosen) != 0) {
    throw std::runtime_error("cannot be bound to the cores " + cores);
  }
}

inline std::optional<double> number_in(const std::string& path) {
  std::ifstream file(path);
  double value = 0;
  return file >> value ? std::optional(value) : std::nullopt;
}

inline std::vector<std::string> matching(const char* pattern) {
  glob_t found;
  std::vector<std::string> paths;
  if (glob(pattern, 0, nullptr, &found) == 0) paths.assign(found.gl_pathv, found.gl_pathv + found.gl_pathc);
  globfree(&found);
  return paths;
}

// How much processor time other programs took, and what a virtual machine's host kept for itself.
class Load {
 public:
  // Cores that were busy with something else, on average; none where it cannot be read.
  std::optional<double> others_cores() const {
    const std::optional<double> end_s = busy_s();
    if (!begin_s_ || !end_s) return std::nullopt;
    return std::max(0.0, *end_s - *begin_s_) * 1000 / std::max(since_ms(begin_), 1.0);
  }

 private:
  // Of all programs but this one; a phone may hide it.
  static std::optional<double> busy_s() {
    std::ifstream file("/proc/stat");
    std::string cpu;
    double user = 0, nice = 0, system = 0, idle = 0, waiting = 0, irq = 0, softirq = 0, steal = 0;
    if (!(file >> cpu >> user >> nice >> system >> idle >> waiting >> irq >> softirq >> steal)) return std::nullopt;
    rusage own{};
    getrusage(RUSAGE_SELF, &own);
    const auto seconds = [](const timeval& t) { return static_cast<double>(t.tv_sec) + t.tv_usec / 1e6; };
    const double all_s = (user + nice + system + irq + softirq + steal) / static_cast<double>(sysconf(_SC_CLK_TCK));
    return all_s - seconds(own.ru_utime) - seconds(own.ru_stime);
  }

  std::optional<double> begin_s_ = busy_s();
  Clock::time_point begin_ = Clock::now();
};

// The resident set's high-water mark.
inline std::optional<double> peak_kib() {
  std::ifstream file("/proc/self/status");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("VmHWM:", 0) == 0) return std::stod(line.substr(6));
  }
  return std::nullopt;
}

// Energy of the whole device: RAPL counters on a PC, INA3221 rails on a Jetson, the battery of a phone.
class Meter {
 public:
  // Read what tells power rather than energy, at most every 50 ms.
  void note() {
    if (!counters_.empty() || since_ms(last_) < 50) return;
    last_ = Clock::now();
    if (!add_watts("/sys/bus/i2c/drivers/ina3221/*/hwmon/hwmon*/curr1_input", "in1_input", 1e-6)) {
      add_watts("/sys/class/power_supply/[bB]att*/current_now", "voltage_now", 1e-12);
    }
  }

  // Of one run on average; none where nothing can be read, or a counter began anew.
  std::optional<double> millijoules(int runs) const {
    if (!counters_.empty()) {
      const std::optional<double> used_uj = counted(used_before_);
      return used_uj && *used_uj > 0 ? std::optional(*used_uj / 1000 / runs) : std::nullopt;
    }
    if (samples_ == 0) return std::nullopt;
    return watts_ / samples_ * since_ms(begin_) / runs;
  }

 private:
  bool add_watts(const char* pattern, const std::string& volts, double scale) {
    for (const std::string& path : matching(pattern)) {
      const auto current = number_in(path), voltage = number_in(path.substr(0, path.rfind('/') + 1) + volts);
      if (!current || !voltage) continue;
      watts_ += std::abs(*current) * *voltage * scale;
      samples_++;
      return true;
    }
    return false;
  }

  // The sum of the counters above `before`; none where one cannot be read, which only root may.
  std::optional<double> counted(double before) const {
    double sum = -before;
    for (const std::string& path : counters_) {
      const auto value = number_in(path);
      if (!value) return std::nullopt;
      sum += *value;
    }
    return sum;
  }

  std::vector<std::string> counters_ = matching("/sys/class/powercap/intel-rapl:?/energy_uj");
  double used_before_ = counted(0).value_or(0);
  Clock::time_point begin_ = Clock::now(), last_{};
  double watts_ = 0;
  int samples_ = 0;
};
