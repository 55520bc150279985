#include "kernels/logit_summary.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <numeric>

#include "tests/kernels/kernel_testing.h"

namespace caravan {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Summaries of rows of `vocab` logits, one behind another.
std::vector<LogitSummary> Summarize(Backend& backend, const std::vector<float>& logits,
                                    int64_t vocab, const std::vector<LogitQuestion>& questions) {
  std::vector<LogitSummary> summaries(questions.size());
  backend.SummarizeLogits(logits.data(), std::ssize(questions), vocab, questions.data(),
                          summaries.data());
  return summaries;
}

/// As the contract has it, in long double and by a whole sort.
void ExpectAnswers(absl::Span<const float> logits, const LogitQuestion& question,
                   const LogitSummary& summary) {
  const auto seen = [&](size_t id) { return std::isnan(logits[id]) ? -kInf : logits[id]; };
  std::vector<int32_t> ids(logits.size());
  std::iota(ids.begin(), ids.end(), 0);
  std::stable_sort(ids.begin(), ids.end(), [&](int32_t a, int32_t b) { return seen(a) > seen(b); });
  ASSERT_EQ(summary.vocab_size, std::ssize(logits));
  for (size_t i = 0; i < kSummaryCandidates; ++i) {
    ASSERT_EQ(summary.ids[i], i < ids.size() ? ids[i] : -1) << "rank " << i;
    ASSERT_EQ(summary.logits[i], i < ids.size() ? seen(ids[i]) : -kInf) << "rank " << i;
  }
  ASSERT_EQ(summary.token_logit, question.token_id < 0 ? -kInf : seen(question.token_id));

  const long double largest = seen(ids[0]);
  const auto weight_of = [&](size_t id, long double temperature) -> long double {
    const long double logit = seen(id);
    return logit == largest ? 1 : std::exp((logit - largest) / temperature);
  };
  long double sum = 0, weight = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    sum += weight_of(id, 1);
    weight += weight_of(id, question.temperature);
  }
  const double error = WeightSumError(std::ssize(logits)) * static_cast<double>(weight);
  ASSERT_NEAR(summary.sum, static_cast<double>(sum),
              WeightSumError(std::ssize(logits)) * static_cast<double>(sum));
  ASSERT_NEAR(summary.weight, static_cast<double>(weight), error);

  if (question.quantile < 0) {
    ASSERT_EQ(summary.drawn_id, -1);
    return;
  }
  const long double target = question.quantile * weight;
  long double through = 0;
  for (size_t id = 0; id < logits.size(); ++id) {
    const long double before = through;
    through += weight_of(id, question.temperature);
    if (target < before - 2 * error) break;
    if (summary.drawn_id != static_cast<int32_t>(id)) {
      // Not where the target lies, unless rounding decides.
      ASSERT_FALSE(before + 2 * error < target && target < through - 2 * error)
          << "token " << id << " was to be drawn, not " << summary.drawn_id;
      continue;
    }
    ASSERT_LE(static_cast<double>(before), static_cast<double>(target) + 2 * error);
    ASSERT_LT(static_cast<double>(target), static_cast<double>(through) + 2 * error);
    ASSERT_EQ(summary.drawn_logit, seen(id));
    ASSERT_NEAR(summary.before_drawn, static_cast<double>(before), error);
    ASSERT_NEAR(summary.through_drawn, static_cast<double>(through), error);
    return;
  }
  ASSERT_EQ(summary.drawn_id, -1) << "is far from the target";
}

/// Kinds of rows, by name.
using MakeLogit = std::function<float(Rng& rng, int64_t id, int64_t vocab)>;
const std::vector<std::pair<std::string, MakeLogit>>& Kinds() {
  static const auto& kinds = *new std::vector<std::pair<std::string, MakeLogit>>{
      {"normal",
       [](Rng& rng, int64_t, int64_t) { return std::normal_distribution<float>(0, 3)(rng); }},
      {"wide", [](Rng& rng, int64_t, int64_t) { return RandomWideFloats(rng, 1, 30)[0]; }},
      {"ties", [](Rng& rng, int64_t, int64_t) { return static_cast<float>(RandomInt(rng, 0, 3)); }},
      {"two values", [](Rng&, int64_t id, int64_t) { return id % 100 == 99 ? 1.0f : -1.0f; }},
      {"all equal", [](Rng&, int64_t, int64_t) { return -2.5f; }},
      {"all NaN", [](Rng&, int64_t, int64_t) { return kNan; }},
      {"all -inf", [](Rng&, int64_t, int64_t) { return -kInf; }},
      {"some NaN",
       [](Rng& rng, int64_t, int64_t) {
         return rng() % 3 == 0 ? kNan : std::normal_distribution<float>(0, 1)(rng);
       }},
      {"some infinite",
       [](Rng& rng, int64_t, int64_t) {
         const int64_t kind = RandomInt(rng, 0, 40);
         return kind == 0 ? kInf : kind == 1 ? -kInf : kind == 2 ? -kNan : 1.0f;
       }},
      {"zeros of both signs",
       [](Rng& rng, int64_t, int64_t) { return rng() % 2 == 0 ? 0.0f : -0.0f; }},
      {"subnormal",
       [](Rng& rng, int64_t, int64_t) {
         return static_cast<float>(RandomInt(rng, -500, 500)) * 0x1p-149f;
       }},
      {"rising", [](Rng&, int64_t id, int64_t) { return static_cast<float>(id) / 1024; }},
      {"falling", [](Rng&, int64_t id, int64_t) { return -static_cast<float>(id) / 1024; }},
      {"one far above",
       [](Rng& rng, int64_t id, int64_t vocab) {
         return id == vocab / 2 ? 3e38f : std::normal_distribution<float>(0, 1)(rng);
       }},
  };
  return kinds;
}

class LogitSummaryTest : public ::testing::Test {
 protected:
  // One of them, as no instruction set and no number of threads enters into it.
  const std::unique_ptr<Backend> backend_ = TestedKinds()[0].make(1);

  /// A row of each kind, with a question each.
  static void Make(int64_t vocab, uint64_t seed, std::vector<float>& logits,
                   std::vector<LogitQuestion>& questions) {
    Rng rng(seed);
    const float temperatures[] = {1, 0.6f, 2, 1e-45f, 100};
    for (const auto& [name, make] : Kinds()) {
      for (int64_t id = 0; id < vocab; ++id) logits.push_back(make(rng, id, vocab));
      LogitQuestion question;
      question.temperature = temperatures[rng() % 5];
      if (rng() % 2 == 0) question.token_id = static_cast<int32_t>(RandomInt(rng, 0, vocab - 1));
      if (rng() % 4 != 0) question.quantile = static_cast<double>(rng() >> 11) * 0x1p-53;
      questions.push_back(question);
    }
  }
};

TEST_F(LogitSummaryTest, AnswersWhatIsAskedOfRowsOfAnyKind) {
  // Around a warp, the candidates, a chunk, and where the chunks' best are merged twice.
  for (const int64_t vocab :
       {1, 2, 33, 127, 128, 129, 500, 4095, 4096, 4097, 8191, 20001, 129280, 135169}) {
    std::vector<float> logits;
    std::vector<LogitQuestion> questions;
    Make(vocab, static_cast<uint64_t>(vocab), logits, questions);
    const std::vector<LogitSummary> summaries = Summarize(*backend_, logits, vocab, questions);
    for (size_t row = 0; row < questions.size(); ++row) {
      SCOPED_TRACE(absl::StrCat(vocab, " logits, ", Kinds()[row].first));
      ExpectAnswers(absl::MakeConstSpan(logits).subspan(row * vocab, vocab), questions[row],
                    summaries[row]);
      if (HasFatalFailure()) return;
    }
  }
}

TEST_F(LogitSummaryTest, DrawsTokensInTheirTurn) {
  constexpr int64_t kVocab = 9000;
  constexpr int kDraws = 60;
  Rng rng(7);
  std::vector<float> row(kVocab);
  for (float& logit : row) logit = std::normal_distribution<float>(0, 1)(rng);
  std::vector<float> logits;
  std::vector<LogitQuestion> questions;
  for (int i = 0; i < kDraws; ++i) {
    logits.insert(logits.end(), row.begin(), row.end());
    questions.push_back({1.5f, -1, (i + 1e-3) / kDraws});
  }
  const std::vector<LogitSummary> summaries = Summarize(*backend_, logits, kVocab, questions);
  int32_t last = -1;
  for (size_t i = 0; i < questions.size(); ++i) {
    SCOPED_TRACE(absl::StrCat("quantile ", questions[i].quantile));
    ExpectAnswers(row, questions[i], summaries[i]);
    if (HasFatalFailure()) return;
    EXPECT_GT(summaries[i].drawn_id, last);
    last = summaries[i].drawn_id;
  }
}

TEST_F(LogitSummaryTest, ARowHasTheSameBitsInAnyBatch) {
  for (const int64_t vocab : {700, 40000}) {
    std::vector<float> logits;
    std::vector<LogitQuestion> questions;
    for (uint64_t seed = 0; seed < 4; ++seed) Make(vocab, seed, logits, questions);
    const std::vector<LogitSummary> together = Summarize(*backend_, logits, vocab, questions);
    for (size_t row = 0; row < questions.size(); ++row) {
      const std::vector<float> alone(logits.begin() + row * vocab,
                                     logits.begin() + (row + 1) * vocab);
      const LogitSummary summary = Summarize(*backend_, alone, vocab, {questions[row]})[0];
      EXPECT_EQ(std::memcmp(&summary, &together[row], sizeof(summary)), 0)
          << vocab << " logits, row " << row;
    }
  }
}

}  // namespace
}  // namespace caravan
