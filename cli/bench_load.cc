#include "cli/bench_load.h"

#include <algorithm>
#include <cstddef>

#include "absl/strings/str_cat.h"
#include "cli/stand_in_tokenizer.h"

namespace caravan {

void BenchLoadFlags::AddTo(CLI::App& command, int max_jobs) {
  command.add_option("--jobs", jobs, "Jobs at once, one row of the table each")
      ->delimiter(',')
      ->check(CLI::Range(1, max_jobs))
      ->capture_default_str();
  command.add_option("--rounds", rounds, "Runs of each; their median counts")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command
      .add_option("--requests", requests_per_job,
                  "Requests that each job slot sends one after the other in a run")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
}

std::string DrawSum(std::mt19937_64& generator) {
  std::uniform_int_distribution<int> number(100, 9999);
  const int a = number(generator);
  return absl::StrCat("What is ", a, " + ", number(generator), "?");
}

std::string DrawText(int64_t bytes, std::mt19937_64& generator) {
  std::uniform_int_distribution<int> letter('a', 'z');
  std::uniform_int_distribution<int> length(2, 9);
  std::string text;
  while (static_cast<int64_t>(text.size()) < bytes) {
    if (!text.empty()) text += ' ';
    for (int left = length(generator); left > 0; --left) {
      text += static_cast<char>(letter(generator));
    }
  }
  text.resize(static_cast<size_t>(bytes));
  return text;
}

v1::SamplingParams BenchSampling(const StoredModel& model) {
  v1::SamplingParams sampling;
  sampling.set_temperature(static_cast<float>(kBenchTemperature));
  if (!NeedsStandIn(model)) return sampling;
  for (const int32_t end : model.config().eos_token_ids) {
    v1::LogitBias& bias = *sampling.add_logit_biases();
    bias.set_token_id(static_cast<uint32_t>(end));
    bias.set_bias(-100);
  }
  return sampling;
}

double Quantile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  const auto at = values.begin() +
                  static_cast<std::ptrdiff_t>(share * static_cast<double>(values.size() - 1) + 0.5);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

}  // namespace caravan
