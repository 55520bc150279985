#ifndef CARAVAN_CLI_BENCH_LOAD_H_
#define CARAVAN_CLI_BENCH_LOAD_H_

// What the benchmarks of many jobs at once share: how much is asked, what is asked, and how the
// figures of several rounds become one.

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "caravan/v1/pipeline.pb.h"
#include "model/stored_model.h"

namespace caravan {

/// The options --jobs, --rounds and --requests.
struct BenchLoadFlags {
  std::vector<int> jobs;  // at once, one row of the table each
  int rounds = 0;
  int requests_per_job = 4;  // one after the other, in a round

  void AddTo(CLI::App& command, int max_jobs);
};

/// A question that hardly comes twice, so that no prompt is found in the KV cache beyond what the
/// chat's form has in common.
std::string DrawSum(std::mt19937_64& generator);

/// `bytes` bytes of made-up words, hardly ever the same twice: prefill is to be measured, not
/// the KV cache. The stand-in tokenizer makes a token of each byte.
std::string DrawText(int64_t bytes, std::mt19937_64& generator);

/// At which replies are sampled. Greedily, a model of random weights soon repeats one token and
/// with it the same experts, which flatters every cache. Such a model would end its replies at
/// random, so it is kept from that.
inline constexpr double kBenchTemperature = 1;

/// So; a model of random weights never ends its replies.
v1::SamplingParams BenchSampling(const StoredModel& model);

/// The value that `share` of the values do not exceed; 0 for none.
double Quantile(std::vector<double> values, double share);

}  // namespace caravan

#endif  // CARAVAN_CLI_BENCH_LOAD_H_
