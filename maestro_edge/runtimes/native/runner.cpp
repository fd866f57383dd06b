// Runs on the device: ExecuTorch and its XNNPACK backend without Python.
//
//   runner job.txt result.json
//
// The same tasks and answers as runner.py: `about`, `time`, `ops`, `solo`, `predict`. A job is lines of "key value"; each
// file is a line `name` with its name as a JSON string, which is echoed as it stands, and a line `file` with its path.
// The result is one JSON document, written aside and renamed; {"error": "..."} when the job failed.

#include <executorch/runtime/platform/runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "conditions.h"
#include "job.h"
#include "network.h"
#include "npy.h"
#include "text.h"

namespace {

Array random_sample(const Network& network, std::mt19937_64& random) {
  Array sample{network.type, network.shape, std::vector<uint8_t>(elements(network.shape) * size_of(network.type))};
  // Ids 0 and 1 are in every vocabulary; other inputs are real numbers.
  if (network.type == ScalarType::Long) {
    auto* ids = reinterpret_cast<int64_t*>(sample.bytes.data());
    std::generate_n(ids, elements(network.shape), [&] { return static_cast<int64_t>(random() % 2); });
  } else if (network.type == ScalarType::Float) {
    auto* values = reinterpret_cast<float*>(sample.bytes.data());
    std::normal_distribution<float> normal;
    std::generate_n(values, elements(network.shape), [&] { return normal(random); });
  } else {
    throw std::runtime_error("its input is neither float32 nor int64");
  }
  return sample;
}

using Networks = std::vector<std::unique_ptr<Network>>;

Networks load_all(const Job& job, bool traced, std::mt19937_64& random) {
  set_threads(static_cast<uint32_t>(job.count("threads")));
  Networks networks;
  for (const File& file : job.files) {
    networks.push_back(std::make_unique<Network>(file.path, traced));
    networks.back()->feed(random_sample(*networks.back(), random));
  }
  return networks;
}

// Every file once a round, in a new random order each round: drift meets all of them alike.
void for_rounds(int rounds, size_t count, std::mt19937_64& random, const std::function<void(size_t)>& visit) {
  std::vector<size_t> order(count);
  for (size_t i = 0; i < count; i++) order[i] = i;
  for (int round = 0; round < rounds; round++) {
    std::shuffle(order.begin(), order.end(), random);
    for (const size_t index : order) visit(index);
  }
}

// Runs for `warmup_ms` and until two runs agree within 5 %; returns how many fill `slice_ms`, 2 to 20. After ten times
// `warmup_ms` it goes on as it is: rows that are not steady show in their spread.
int warm_up(Network& network, double warmup_ms, double slice_ms) {
  const auto begin = Clock::now();
  std::vector<double> times_ms;
  for (bool enough = false; !enough;) {
    const auto start = Clock::now();
    network.run();
    times_ms.push_back(since_ms(start));
    const size_t runs = times_ms.size();
    const bool steady = runs >= 3 && std::abs(times_ms[runs - 1] - times_ms[runs - 2]) <= 0.05 * times_ms[runs - 1];
    enough = runs >= 3 && since_ms(begin) >= warmup_ms * (steady ? 1 : 10);
  }
  const auto middle = times_ms.begin() + static_cast<ptrdiff_t>(times_ms.size() / 2);
  std::nth_element(times_ms.begin(), middle, times_ms.end());
  return static_cast<int>(std::clamp(std::nearbyint(slice_ms / std::max(*middle, 1e-6)), 2.0, 20.0));
}

using Fields = std::map<std::string, std::string>;  // JSON by key

// {NAME: VALUE, ...} of the job's files in their order.
std::string by_file(const Job& job, const std::vector<std::string>& values) {
  std::vector<std::string> fields;
  for (size_t i = 0; i < values.size(); i++) fields.push_back(job.files[i].name + ": " + values[i]);
  return "{" + joined(fields, ", ") + "}";
}

std::string json_number(std::optional<double> value) {
  if (!value || !std::isfinite(*value)) return "null";
  std::ostringstream text;
  text.precision(12);
  text << *value;
  return text.str();
}

Fields measure(const Job& job) {
  std::mt19937_64 random(static_cast<uint64_t>(job.number("seed")));
  const Networks networks = load_all(job, false, random);
  std::vector<int> repeats;
  for (const auto& network : networks) {
    repeats.push_back(warm_up(*network, job.number("warmup_ms"), job.number("slice_ms")));
  }
  std::vector<std::vector<int64_t>> samples_ns(networks.size());
  for_rounds(job.count("rounds"), networks.size(), random, [&](size_t index) {
    Network& network = *networks[index];
    network.run();  // the caches were another file's
    for (int i = 0; i < repeats[index]; i++) {
      const auto start = Clock::now();
      network.run();
      samples_ns[index].push_back(std::chrono::nanoseconds(Clock::now() - start).count());
    }
  });
  std::vector<std::string> values;
  for (const auto& samples : samples_ns) values.push_back("[" + joined(samples, ", ") + "]");
  return {{"samples_ns", by_file(job, values)}};
}

Fields trace_ops(const Job& job) {
  std::mt19937_64 random(static_cast<uint64_t>(job.number("seed")));
  const Networks networks = load_all(job, true, random);
  const auto repeat = [&](size_t index, int runs) {
    for (int i = 0; i < runs; i++) networks[index]->run();
  };
  for (size_t i = 0; i < networks.size(); i++) repeat(i, job.count("cold_runs"));
  for_rounds(job.count("rounds"), networks.size(), random,
             [&](size_t index) { repeat(index, job.count("runs_per_round")); });
  std::vector<std::string> values;
  for (size_t i = 0; i < networks.size(); i++) {
    const std::string trace = job.files[i].path + ".etdump";
    networks[i]->write_trace(trace);
    values.push_back(json_string(trace));
  }
  return {{"traces", by_file(job, values)}};
}

// One file in a process of its own: cold start, peak memory, and the energy of a run where it can be read.
Fields solo(const Job& job) {
  std::mt19937_64 random(static_cast<uint64_t>(job.number("seed")));
  set_threads(static_cast<uint32_t>(job.count("threads")));
  const auto start = Clock::now();
  Network network(job.only_file(), false);
  network.feed(random_sample(network, random));
  const double load_ms = since_ms(start);
  network.run();
  const double first_ms = since_ms(start) - load_ms;
  const auto first = Clock::now();
  int runs = 0;
  Meter meter;
  while (runs < 3 || since_ms(first) < 1000 * job.number("seconds")) {
    network.run();
    runs++;
    meter.note();
  }
  return {{"load_ms", json_number(load_ms)},
          {"first_ms", json_number(first_ms)},
          {"peak_kib", json_number(peak_kib())},
          {"energy_mj", json_number(meter.millijoules(runs))}};
}

// Each sample alone, as an app runs it; outputs are stacked.
Fields predict(const Job& job) {
  set_threads(static_cast<uint32_t>(job.count("threads")));
  const Array samples = read_npy(job.text("samples"));
  Network network(job.only_file(), false);
  const size_t count = static_cast<size_t>(samples.shape[0]);
  if (count == 0) throw std::runtime_error("there are no samples");
  Array sample{samples.type, samples.shape, {}};
  sample.shape[0] = 1;
  const auto size = static_cast<ptrdiff_t>(samples.bytes.size() / count);
  Array outputs;
  for (auto at = samples.bytes.begin(); at != samples.bytes.end(); at += size) {
    sample.bytes.assign(at, at + size);
    network.feed(sample);
    const Array& output = network.run();
    outputs.type = output.type;
    outputs.shape = output.shape;
    outputs.bytes.insert(outputs.bytes.end(), output.bytes.begin(), output.bytes.end());
  }
  if (outputs.shape.empty()) throw std::runtime_error("its output has no dimension to stack");
  outputs.shape[0] *= static_cast<SizesType>(count);
  write_npy(job.text("outputs"), outputs);
  return {{"outputs", json_string(job.text("outputs"))}};
}

Fields about(const Job&) { return {{"versions", "{\"executorch\": \"" EXECUTORCH_VERSION "\"}"}}; }

Fields run_task(const std::string& path) {
  const std::map<std::string, Fields (*)(const Job&)> tasks = {
      {"about", about}, {"time", measure}, {"ops", trace_ops}, {"solo", solo}, {"predict", predict}};
  try {
    const Job job(path);
    const auto task = tasks.find(job.text("task"));
    if (task == tasks.end()) throw std::runtime_error("no task " + job.text("task"));
    if (job.has("cores")) bind_to(job.text("cores"));
    const Load load;
    Fields result = task->second(job);
    result["others_cores"] = json_number(load.others_cores());
    return result;
  } catch (const std::exception& error) {
    return {{"error", json_string(error.what())}};
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: runner JOB RESULT\n");
    return 2;
  }
  executorch::runtime::runtime_init();
  std::vector<std::string> fields;
  for (const auto& [key, value] : run_task(argv[1])) fields.push_back(json_string(key) + ": " + value);
  const std::string result = "{" + joined(fields, ", ") + "}";
  try {
    write_file(argv[2], result.data(), result.size());
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
