// The whole pipeline against what other implementations computed, and against itself: the same bits
// whatever the chunks, workers, threads and neighbours.

#include <bit>
#include <cmath>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "cli/local_pipeline.h"
#include "gtest/gtest.h"
#include "kernels/kv_rows.h"
#include "kernels/reference/reference_backend.h"
#include "model/stored_model_cost.h"
#include "tests/cli/pipeline_testing.h"
#include "tests/support/golden.h"
#include "tests/support/golden_replies.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

// Both sides round every operation of a few layers to float, in orders of their own: a few hundred
// roundings of 2^-24 on the way, times the growth by a softmax, a router's weights and norms.
constexpr double kTolerance = 1e-4;

constexpr int64_t kWhole = 2048;  // a chunk that takes any prompt of these tests

std::vector<CpuIsa> TestedIsas() {
  std::vector<CpuIsa> isas = {CpuIsa::kPortable};
  if (RowOpsFor(CpuIsa::kAvx2).ok()) isas.push_back(CpuIsa::kAvx2);
  return isas;
}

/// On each instruction set.
void ExpectGoldenLogits(const GoldenModel& model, int num_lists) {
  for (const CpuIsa isa : TestedIsas()) {
    SCOPED_TRACE(absl::StrCat("isa ", static_cast<int>(isa)));
    LocalPipeline::Options options;
    options.isa = isa;
    options.num_threads = 2;
    ExpectGoldenLogits(model, num_lists, options, kTolerance);
  }
}

TEST(GoldenPipelineTest, TinyR1) { ExpectGoldenLogits(kTinyR1, 5); }

TEST(GoldenPipelineTest, V3Like) { ExpectGoldenLogits(SmallGoldenModel("v3-like"), 3); }

TEST(GoldenPipelineTest, KimiK2Like) { ExpectGoldenLogits(SmallGoldenModel("kimi-k2-like"), 3); }

TEST(GoldenPipelineTest, V2LiteLike) { ExpectGoldenLogits(SmallGoldenModel("v2-lite-like"), 3); }

TEST(GoldenPipelineTest, LongPrompt) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  const std::unique_ptr<SafetensorsFile> golden =
      MustOpenGolden(CARAVAN_SOURCE_DIR "/tests/data/goldens/tiny-r1-golden-long.safetensors");
  const auto ids = GoldenValues<int32_t>(*golden, "ids");
  const auto expected = GoldenValues<float>(*golden, "last_logits");
  struct Run {
    int workers;
    int64_t chunk;
  };
  std::vector<float> first;
  for (const Run& run : {Run{1, kWhole}, Run{2, 7}, Run{3, 1}}) {
    LocalPipeline::Options options;
    options.num_workers = run.workers;
    options.num_threads = 2;
    options.prefill_chunk = run.chunk;
    const std::vector<float> logits = ScoreAll(*checkpoint, options, {ids})[0];
    ASSERT_EQ(logits.size(), ids.size() * static_cast<size_t>(checkpoint->config().vocab_size));
    EXPECT_LE(RelativeError(absl::MakeConstSpan(logits).last(expected.size()), expected),
              kTolerance)
        << "chunks of " << run.chunk;
    if (first.empty()) first = logits;
    EXPECT_TRUE(SameBits(logits, first)) << "chunks of " << run.chunk;
  }
}

// A cached value is off by at most `unit` of itself (F16: 2^-11) or of the largest of its block
// (Q8_0: half of one of 127 steps). So a layer's attention is off by about as much: by `unit` in
// the values that it averages, and in the weights by what the scores are off by, which are sums of
// as many errors of either sign. Each of the layers adds its own to the residual, to which it
// contributes a part. Chunks and workers show no more than with f32.
TEST(GoldenPipelineTest, SmallerKvCachesStayWithinTheirRounding) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  const std::unique_ptr<SafetensorsFile> golden = MustOpenGolden(kTinyR1.golden);
  std::vector<std::vector<int32_t>> prompts;
  std::vector<std::vector<float>> expected;
  for (int i = 0; i < 5; ++i) {
    prompts.push_back(GoldenValues<int32_t>(*golden, absl::StrCat("ids_", i)));
    expected.push_back(GoldenValues<float>(*golden, absl::StrCat("logits_", i)));
  }
  for (const auto& [dtype, unit] : {std::pair{DType::kF16, 0x1p-11}, {DType::kQ8_0, 0.5 / 127}}) {
    std::vector<std::vector<float>> first;
    for (const auto& [workers, chunk] : {std::pair{1, kWhole}, {2, 7}, {3, 1}}) {
      LocalPipeline::Options options;
      options.num_workers = workers;
      options.num_threads = 2;
      options.prefill_chunk = chunk;
      options.kv_dtype = dtype;
      const std::vector<std::vector<float>> logits = ScoreAll(*checkpoint, options, prompts);
      if (first.empty()) first = logits;
      for (size_t i = 0; i < prompts.size(); ++i) {
        const double error = RelativeError(logits[i], expected[i]);
        EXPECT_LE(error, checkpoint->config().num_hidden_layers * unit)
            << DTypeName(dtype) << " list " << i;
        EXPECT_GT(error, kTolerance / 100) << DTypeName(dtype) << " is not in use";
        EXPECT_TRUE(SameBits(logits[i], first[i])) << DTypeName(dtype) << " list " << i;
      }
    }
  }
}

TEST(GoldenPipelineTest, ThreadsDoNotShow) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  const std::unique_ptr<SafetensorsFile> golden = MustOpenGolden(kTinyR1.golden);
  const auto ids = GoldenValues<int32_t>(*golden, "ids_3");
  for (const CpuIsa isa : TestedIsas()) {
    std::vector<float> first;
    for (const int threads : {1, 2, 3}) {
      LocalPipeline::Options options;
      options.isa = isa;
      options.num_threads = threads;
      options.prefill_chunk = 16;
      const std::vector<float> logits = ScoreAll(*checkpoint, options, {ids})[0];
      ASSERT_FALSE(logits.empty());
      if (first.empty()) first = logits;
      EXPECT_TRUE(SameBits(logits, first)) << threads << " threads";
    }
  }
}

TEST(GoldenPipelineTest, GreedyRepliesAreTokenForTokenTheReference) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  const std::vector<GoldenReply> golden = ReadGoldenReplies();
  for (const int workers : {1, 2, 3}) {
    LocalPipeline::Options options;
    options.num_workers = workers;
    options.num_threads = 2;
    options.kv_tokens = 16384;
    const std::unique_ptr<LocalPipeline> pipeline = MustCreate(*checkpoint, options);
    ExpectGoldenReplies(*checkpoint, golden, golden.size(), pipeline->driver());
  }
}

TEST(GoldenPipelineTest, DraftsChangeNoReply) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  const std::vector<GoldenReply> golden = ReadGoldenReplies();
  for (const int workers : {1, 2, 3}) {
    SCOPED_TRACE(absl::StrCat(workers, " workers"));
    LocalPipeline::Options options;
    options.num_workers = workers;
    options.num_threads = 2;
    options.kv_tokens = 8192;
    options.speculate = true;
    const std::unique_ptr<LocalPipeline> pipeline = MustCreate(*checkpoint, options);
    // Alone, and beside seven others.
    for (const size_t at_once : {1, 8}) {
      ExpectGoldenReplies(*checkpoint, golden, at_once, pipeline->driver());
    }
    const PipelineStats stats = pipeline->driver().stats();
    EXPECT_GT(stats.draft_tokens, 50);
    EXPECT_GT(stats.draft_accepted_tokens, 0.9 * stats.draft_tokens);
    EXPECT_LT(stats.draft_accepted_tokens, stats.draft_tokens) << "a wrong draft was never met";
  }
}

// Memory for the weights and one longest sequence; what else the sequences need is read from disk
// and written back, layer by layer.
TEST(GoldenPipelineTest, KvBlocksOnDiskDoNotShow) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  const std::vector<GoldenReply> golden = ReadGoldenReplies();
  constexpr int64_t kContext = 5 * kKvBlockTokens;
  const LayerCost whole = CostOfStoredModel(*checkpoint, /*speculate=*/true)
                              ->Of({0, checkpoint->config().num_hidden_layers, true, true, true});
  TempDir dir;
  LocalPipeline::Options options;
  options.num_threads = 2;
  options.prefill_chunk = 48;
  options.context_tokens = kContext;
  options.kv_tokens = 12 * kKvBlockTokens;
  options.memory_budget_bytes =
      whole.weight_bytes + KvBytes(options.kv_dtype, kContext * whole.kv_values_per_token);
  options.kv_disk_bytes = int64_t{1} << 30;
  options.kv_disk_directory = dir.path();
  options.speculate = true;
  const std::unique_ptr<LocalPipeline> pipeline = MustCreate(*checkpoint, options);
  const LocalPipeline::StageStats stage = pipeline->stages().front();
  EXPECT_EQ(stage.kv_blocks, 12);
  EXPECT_EQ(stage.kv_blocks_on_disk, 10);
  ExpectGoldenReplies(*checkpoint, golden, 8, pipeline->driver());
}

/// Token ids and the bits of their log-probabilities.
using Outcome = std::vector<std::pair<int32_t, uint32_t>>;

Outcome ReadOutcome(JobHandle& job) {
  Outcome outcome;
  while (true) {
    absl::StatusOr<JobUpdate> update = job.Next();
    EXPECT_TRUE(update.ok()) << update.status().ToString();
    if (!update.ok()) return {};
    for (const ScoredToken& token : update->tokens) {
      outcome.emplace_back(token.token_id, std::bit_cast<uint32_t>(token.log_probability));
    }
    if (update->finished) return outcome;
  }
}

TEST(GoldenPipelineTest, AJobDoesNotFeelItsNeighbours) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  const std::vector<GoldenReply> golden = ReadGoldenReplies();
  std::vector<JobSpec> specs;
  for (size_t i = 0; i < 8; ++i) {
    // Every fifth line: prompts of different lengths. Odd jobs are sampled.
    specs.push_back(MakeJob(*checkpoint, golden[i * 5 % golden.size()].prompt));
    if (i % 2 == 0) continue;
    specs.back().sampling.set_temperature(3);  // this model is very sure
    specs.back().sampling.set_top_p(0.99f);
    specs.back().sampling.set_seed(1000 + i);
    specs.back().max_new_tokens = 40;
  }
  LocalPipeline::Options options;
  options.num_workers = 2;
  options.num_threads = 2;
  options.prefill_chunk = 5;  // so that prompts and replies share steps
  options.kv_tokens = 8192;
  const std::unique_ptr<LocalPipeline> pipeline = MustCreate(*checkpoint, options);
  std::vector<Outcome> alone;
  for (const JobSpec& spec : specs) {
    auto job = pipeline->driver().Submit(spec);
    ASSERT_TRUE(job.ok());
    alone.push_back(ReadOutcome(**job));
    EXPECT_FALSE(alone.back().empty());
  }
  std::vector<std::unique_ptr<JobHandle>> together;
  for (const JobSpec& spec : specs) {
    auto job = pipeline->driver().Submit(spec);
    ASSERT_TRUE(job.ok());
    together.push_back(*std::move(job));
  }
  for (size_t i = 0; i < specs.size(); ++i) {
    EXPECT_EQ(ReadOutcome(*together[i]), alone[i]) << "job " << i;
  }
  // Else sampling might not have been on.
  JobSpec other = specs[1];
  other.sampling.set_seed(77);
  auto job = pipeline->driver().Submit(other);
  ASSERT_TRUE(job.ok());
  EXPECT_NE(ReadOutcome(**job), alone[1]);
}

TEST(GoldenPipelineTest, DraftsChangeNoSampledReply) {
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  const std::vector<GoldenReply> golden = ReadGoldenReplies();
  std::vector<JobSpec> specs;
  for (size_t i = 0; i < 12; ++i) {
    specs.push_back(MakeJob(*checkpoint, golden[i * 5 % golden.size()].prompt));
    specs.back().max_new_tokens = 40;
    specs.back().sampling.set_temperature(i % 3 == 0 ? 1.2f : 2.5f);
    specs.back().sampling.set_seed(500 + i);
    specs.back().sampling.set_num_alternatives(2);
    if (i % 2 == 0) specs.back().sampling.set_top_p(0.97f);
    if (i % 4 == 1) specs.back().sampling.set_frequency_penalty(0.5f);
    if (i % 4 == 2) specs.back().sampling.set_repetition_penalty(1.2f);
  }
  std::vector<std::vector<Outcome>> outcomes;
  for (const bool speculate : {false, true}) {
    LocalPipeline::Options options;
    options.num_workers = 2;
    options.num_threads = 2;
    options.prefill_chunk = 9;  // so that prompts and drafts share steps
    options.kv_tokens = 8192;
    options.speculate = speculate;
    const std::unique_ptr<LocalPipeline> pipeline = MustCreate(*checkpoint, options);
    std::vector<std::unique_ptr<JobHandle>> jobs;
    for (const JobSpec& spec : specs) {
      auto job = pipeline->driver().Submit(spec);
      ASSERT_TRUE(job.ok());
      jobs.push_back(*std::move(job));
    }
    outcomes.emplace_back();
    for (const auto& job : jobs) outcomes.back().push_back(ReadOutcome(*job));
    const PipelineStats stats = pipeline->driver().stats();
    EXPECT_EQ(stats.draft_tokens > 0, speculate);
    if (speculate) {
      EXPECT_GT(stats.draft_accepted_tokens, 0);
      EXPECT_LT(stats.draft_accepted_tokens, stats.draft_tokens);
    }
  }
  EXPECT_EQ(outcomes[0], outcomes[1]);
}

/// A value that chi-square with so many degrees of freedom passes with probability 1e-6: Wilson and
/// Hilferty, "The distribution of chi-square" (1931), with the normal quantile of 1 - 1e-6.
double ChiSquareBound(int degrees) {
  const double variance = 2.0 / (9.0 * degrees);
  return degrees * std::pow(1 - variance + 4.7534 * std::sqrt(variance), 3);
}

// Not the same draws: other seeds, so that only the distribution can agree. The first token comes
// from the prompt's step, the second from the first one's row, the third often from a draft's row.
TEST(GoldenPipelineTest, DraftsChangeNoDistribution) {
  constexpr int kReplies = 1000;
  constexpr int kTokens = 3;
  constexpr int kAtOnce = 50;
  const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(kTinyR1.directory);
  const std::vector<int32_t> prompt = ReadGoldenReplies()[0].prompt;
  // How often each token came at each place.
  std::map<int32_t, int> counts[2][kTokens];
  PipelineStats stats;
  for (const int speculate : {0, 1}) {
    LocalPipeline::Options options;
    options.num_threads = 2;
    options.kv_tokens = 8192;
    options.speculate = speculate == 1;
    const std::unique_ptr<LocalPipeline> pipeline = MustCreate(*checkpoint, options);
    const uint64_t first_seed = speculate == 1 ? 1000000 : 1;
    RecordProperty(speculate == 1 ? "first_seed_with" : "first_seed_without",
                   static_cast<int>(first_seed));
    for (int batch = 0; batch < kReplies; batch += kAtOnce) {
      std::vector<std::unique_ptr<JobHandle>> jobs;
      for (int i = 0; i < kAtOnce; ++i) {
        JobSpec spec;
        spec.prompt = prompt;
        spec.max_new_tokens = kTokens + 1;  // so that each but the last may be followed by a draft
        spec.sampling.set_temperature(10);  // this model is very sure
        spec.sampling.set_top_k(8);
        spec.sampling.set_seed(first_seed + static_cast<uint64_t>(batch + i));
        auto job = pipeline->driver().Submit(spec);
        ASSERT_TRUE(job.ok());
        jobs.push_back(*std::move(job));
      }
      for (const auto& job : jobs) {
        const absl::StatusOr<std::vector<int32_t>> reply = ReadReply(*job);
        ASSERT_TRUE(reply.ok());
        for (size_t i = 0; i < kTokens; ++i) ++counts[speculate][i][(*reply)[i]];
      }
    }
    stats = pipeline->driver().stats();
  }
  EXPECT_GT(stats.draft_accepted_tokens, 100);
  EXPECT_GT(stats.draft_tokens - stats.draft_accepted_tokens, 100);
  for (int place = 0; place < kTokens; ++place) {
    // Two samples of one size: the sum of (a - b)^2 / (a + b), tokens that came rarely as one.
    int rare[2] = {0, 0};
    double chi_square = 0;
    int degrees = -1;
    const auto add = [&](int a, int b) {
      chi_square += std::pow(a - b, 2) / (a + b);
      ++degrees;
    };
    std::map<int32_t, int> seen = counts[0][place];
    for (const auto& [token, count] : counts[1][place]) seen[token] += count;
    for (const auto& [token, total] : seen) {
      const int a = counts[0][place][token];
      if (total >= 20) {
        add(a, total - a);
      } else {
        rare[0] += a;
        rare[1] += total - a;
      }
    }
    if (rare[0] + rare[1] > 0) add(rare[0], rare[1]);
    ASSERT_GE(degrees, 5) << "place " << place;
    EXPECT_LT(chi_square, ChiSquareBound(degrees))
        << "place " << place << ", seeds from 1 and from 1000000";
  }
}

TEST(GoldenPipelineTest, ReferenceBackendAgrees) {
  for (const std::string name : {"v3-like", "kimi-k2-like", "v2-lite-like"}) {
    const GoldenModel model = SmallGoldenModel(name);
    const std::unique_ptr<Checkpoint> checkpoint = MustOpenCheckpoint(model.directory);
    const std::unique_ptr<SafetensorsFile> golden = MustOpenGolden(model.golden);
    const ModelConfig& config = checkpoint->config();
    Stage::Options options;
    options.kv_budget_bytes = 1 << 20;
    options.max_step_tokens = 64;
    auto stage =
        Stage::Create(config, {0, config.num_hidden_layers, true, true}, *checkpoint,
                      MakeReferenceBackend(), options, [](int64_t, int64_t) { return true; });
    ASSERT_TRUE(stage.ok()) << stage.status().ToString();
    v1::Step step;
    v1::SequenceSlice& slice = *step.add_slices();
    slice.set_output(v1::SLICE_OUTPUT_LOGITS);
    for (const int32_t id : GoldenValues<int32_t>(*golden, "ids_1")) {
      slice.add_token_ids(static_cast<uint32_t>(id));
    }
    slice.add_kv_blocks(0);
    step = (*stage)->Run(std::move(step));
    ASSERT_FALSE(step.has_error()) << step.error().message();
    std::vector<float> logits(step.results(0).logits().size() / sizeof(float));
    std::memcpy(logits.data(), step.results(0).logits().data(), logits.size() * sizeof(float));
    // The backend rounds once an operation, some 20 in each of 4 layers: 80 * 2^-24 is 5e-6 if
    // every rounding went the same way. The golden values, float sums too, may be as far from the
    // truth.
    EXPECT_LE(RelativeError(logits, GoldenValues<float>(*golden, "logits_1")), 1e-5) << name;
  }
}

TEST(GoldenPipelineTest, ABudgetOfMemoryHoldsTheModelOrSaysWhatIsMissing) {
  const std::unique_ptr<Checkpoint> checkpoint =
      MustOpenCheckpoint(SmallGoldenModel("v3-like").directory);
  LocalPipeline::Options options;
  options.num_workers = 2;
  options.context_tokens = 128;
  options.memory_budget_bytes = 1 << 20;
  const absl::Status too_little = LocalPipeline::Create(*checkpoint, options).status();
  EXPECT_EQ(too_little.code(), absl::StatusCode::kOutOfRange);
  EXPECT_TRUE(absl::StartsWith(too_little.message(), "--ram 1.00 MiB: the model needs "))
      << too_little.message();
  // What others in the process take counts, and is told apart.
  options.memory_budget_bytes = 2 << 20;
  options.LeaveHalf();
  const absl::Status half = LocalPipeline::Create(*checkpoint, options).status();
  EXPECT_TRUE(absl::StartsWith(
      half.message(),
      "--ram 2.00 MiB, of which 1.00 MiB are for the other model: the model needs "))
      << half.message();
  options.memory_aside_bytes = 0;
  options.memory_budget_bytes = 16 << 20;
  const std::unique_ptr<LocalPipeline> pipeline = MustCreate(*checkpoint, options);
  EXPECT_TRUE(ScorePrompt(pipeline->driver(), std::vector<int32_t>(128, 5)).ok());
  EXPECT_FALSE(ScorePrompt(pipeline->driver(), std::vector<int32_t>(129, 5)).ok());
}

}  // namespace
}  // namespace caravan
