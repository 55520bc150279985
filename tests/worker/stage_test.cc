// What slices ask for and get, and what a stage reads.

#include "worker/stage.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "base/mutex.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/sampler.h"
#include "model/step_memory.h"
#include "tests/support/golden.h"
#include "tests/support/temp_dir.h"
#include "worker/experts/router_lookahead.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

/// Counts who reads what of another source. ReadPart is thread-safe.
class CountingSource : public TensorSource {
 public:
  explicit CountingSource(const TensorSource& source) : source_(source) {}
  const TensorInfo* Find(absl::string_view name) const override { return source_.Find(name); }
  absl::Status ReadPart(absl::string_view name, int64_t offset,
                        absl::Span<std::byte> out) const override {
    {
      MutexLock lock(&mu_);
      names.insert(std::string(name));
    }
    if (name == broken) return absl::DataLossError("the disk failed");
    return source_.ReadPart(name, offset, out);
  }

  mutable std::set<std::string> names;  // under mu_ while somebody reads
  std::string broken;

 private:
  const TensorSource& source_;
  mutable Mutex mu_;
};

class StageTest : public ::testing::Test {
 protected:
  absl::StatusOr<std::unique_ptr<Stage>> Create(
      const TensorSource& source, const StageSpec& spec,
      const StageWeights::Progress& progress = [](int64_t, int64_t) { return true; }) {
    Stage::Options options;
    options.name = "worker 2 (box-b)";
    // Four blocks of the 4 layers at most.
    options.kv_budget_bytes = 4 * 4 * 64 * checkpoint_->config().Mla().kv_width() * 4;
    options.max_step_tokens = 8;
    options.kv_archive.store = archive_;
    return Stage::Create(checkpoint_->config(), spec, source, *MakeCpuBackend({}), options,
                         progress);
  }

  /// A step of one slice, of tokens 5, 6, ... in KV block `block`.
  static v1::Step MakeStep(uint64_t sequence, uint32_t first_position, int tokens,
                           uint32_t block = 0) {
    v1::Step step;
    v1::SequenceSlice& slice = *step.add_slices();
    slice.set_sequence_id(sequence);
    slice.set_first_position(first_position);
    for (int i = 0; i < tokens; ++i) slice.add_token_ids(5 + static_cast<uint32_t>(i));
    slice.set_output(v1::SLICE_OUTPUT_SAMPLE);
    slice.add_kv_blocks(block);
    return step;
  }

  /// The result of the only slice.
  static v1::SliceResult RunOne(Stage& stage, v1::Step step) {
    step = stage.Run(std::move(step));
    EXPECT_FALSE(step.has_error()) << step.error().message();
    EXPECT_EQ(step.results_size(), 1);
    return step.results(0);
  }

  /// The logits of every row, [rows, vocab_size].
  static std::vector<float> LogitsOf(Stage& stage, v1::Step step) {
    step.mutable_slices(0)->set_output(v1::SLICE_OUTPUT_LOGITS);
    const std::string bytes = RunOne(stage, std::move(step)).logits();
    std::vector<float> logits(bytes.size() / sizeof(float));
    std::memcpy(logits.data(), bytes.data(), bytes.size());
    return logits;
  }

  /// All that the cache holds.
  static std::vector<std::byte> Contents(const Stage& stage) {
    const KvCache& cache = stage.kv_cache();
    const std::byte* const begin = cache.LayerOfBlock(0, 0);
    const int64_t layer_bytes = cache.LayerOfBlock(0, 1) - begin;
    return std::vector<std::byte>(
        begin, begin + cache.num_blocks() * stage.spec().num_layers() * layer_bytes);
  }

  static void ExpectError(const v1::Step& step, const std::string& says) {
    EXPECT_THAT(step.error().message(), HasSubstr("worker 2 (box-b), layers "));
    EXPECT_THAT(step.error().message(), HasSubstr(says));
    EXPECT_EQ(step.results_size(), 0);
    EXPECT_TRUE(step.activations().empty());
  }

  std::shared_ptr<KvBlockStore> archive_;  // null: none
  const std::unique_ptr<Checkpoint> checkpoint_ =
      MustOpenCheckpoint(SmallGoldenModel("v3-like").directory);
};

TEST_F(StageTest, AStepThatCannotBeRunTouchesNothingAndSaysWhy) {
  const auto stage = *Create(*checkpoint_, {0, 4, true, true});
  ASSERT_FALSE(stage->Run(MakeStep(1, 0, 8)).has_error());
  const std::vector<std::byte> before = Contents(*stage);
  v1::Step bad = MakeStep(2, 0, 2, 1);
  bad.mutable_slices(0)->set_token_ids(1, 320);
  v1::BlockCopy& copy = *bad.add_block_copies();
  copy.set_from(0);
  copy.set_to(2);
  const v1::Step answer = stage->Run(bad);
  ExpectError(answer, "sequence 2: token 320 is outside the vocabulary of 320");
  EXPECT_EQ(answer.error().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_EQ(Contents(*stage), before);
  // After that it still works.
  EXPECT_EQ(RunOne(*stage, MakeStep(3, 0, 2)).sampled_size(), 1);
}

TEST_F(StageTest, ActivationsOfAWrongSizeAreRefused) {
  const auto stage = *Create(*checkpoint_, {1, 3, false, false});
  v1::Step step = MakeStep(1, 0, 2);
  step.set_activations(std::string(17, 'x'));
  ExpectError(stage->Run(step), "activations of 17 bytes");
}

TEST_F(StageTest, AFailedStepPassesUntouched) {
  const auto stage = *Create(*checkpoint_, {0, 4, true, true});
  ASSERT_FALSE(stage->Run(MakeStep(1, 0, 8)).has_error());
  const std::vector<std::byte> before = Contents(*stage);
  v1::Step failed = MakeStep(2, 0, 1, 1);
  failed.add_block_copies()->set_to(2);
  failed.mutable_error()->set_message("stage 0 failed");
  const v1::Step passed = stage->Run(failed);
  EXPECT_EQ(passed.SerializeAsString(), failed.SerializeAsString());
  EXPECT_EQ(Contents(*stage), before);
}

TEST_F(StageTest, ASequenceGoesOnWhereItsBlocksAre) {
  const auto stage = *Create(*checkpoint_, {0, 4, true, true});
  // A sequence of 70 tokens in blocks 3 and 1, eight tokens a step, and the same in 0 and 2.
  const auto run = [&](uint32_t first_block, uint32_t second_block) {
    std::vector<float> logits;
    for (uint32_t position = 0; position < 70; position += 8) {
      v1::Step step = MakeStep(1, position, static_cast<int>(std::min(8u, 70 - position)));
      step.mutable_slices(0)->set_kv_blocks(0, first_block);
      if (position + 8 > 64) step.mutable_slices(0)->add_kv_blocks(second_block);
      logits = LogitsOf(*stage, step);
    }
    return logits;
  };
  const std::vector<float> logits = run(3, 1);
  EXPECT_EQ(logits.size(), 6u * 320);
  EXPECT_EQ(logits, run(0, 2));
}

TEST_F(StageTest, ACopiedBlockGoesOnByItself) {
  const auto stage = *Create(*checkpoint_, {0, 4, true, true});
  const std::vector<float> whole = LogitsOf(*stage, MakeStep(1, 0, 6, 0));
  ASSERT_FALSE(stage->Run(MakeStep(2, 0, 5, 1)).has_error());
  // Sequence 3 begins as 2 does. Its first token of its own goes into a copy, and 2 goes on in the
  // same step: neither sees the other.
  v1::Step step = MakeStep(3, 5, 1, 2);
  step.mutable_slices(0)->set_token_ids(0, 99);
  step.mutable_slices(0)->set_output(v1::SLICE_OUTPUT_LOGITS);
  v1::BlockCopy& copy = *step.add_block_copies();
  copy.set_from(1);
  copy.set_to(2);
  *step.add_slices() = MakeStep(2, 5, 1, 1).slices(0);
  step.mutable_slices(1)->set_token_ids(0, 10);
  step.mutable_slices(1)->set_output(v1::SLICE_OUTPUT_LOGITS);
  step = stage->Run(step);
  ASSERT_EQ(step.results_size(), 2) << step.error().message();
  const std::string last_row(reinterpret_cast<const char*>(whole.data() + 5 * 320), 320 * 4);
  EXPECT_EQ(step.results(1).logits(), last_row);
  EXPECT_NE(step.results(0).logits(), last_row);
  EXPECT_EQ(step.results(0).sequence_id(), 3u);
  EXPECT_EQ(step.results(1).sequence_id(), 2u);
}

TEST_F(StageTest, AnArchivedBlockGoesOnInTheNextStage) {
  const TempDir dir;
  archive_ = *KvBlockStore::Open(dir.File("kv"), 1 << 20);
  const std::string name(16, 'n');
  v1::Step next = MakeStep(1, 64, 6, 2);
  next.mutable_slices(0)->clear_kv_blocks();
  for (const uint32_t block : {1, 2}) next.mutable_slices(0)->add_kv_blocks(block);
  std::vector<float> expected;
  {
    const auto stage = *Create(*checkpoint_, {0, 4, true, true});
    for (uint32_t position = 0; position < 64; position += 8) {
      ASSERT_FALSE(stage->Run(MakeStep(1, position, 8, 1)).has_error());
    }
    v1::Step keeps = next;
    v1::ArchivedBlock& kept = *keeps.add_kept_blocks();
    kept.set_block(1);
    kept.set_name(name);
    expected = LogitsOf(*stage, keeps);
  }
  const auto stage = *Create(*checkpoint_, {0, 4, true, true});
  ASSERT_EQ(stage->kv_archive()->Names(9).size(), 1u);
  next.mutable_slices(0)->set_kv_blocks(0, 3);
  v1::ArchivedBlock& restored = *next.add_restored_blocks();
  restored.set_block(3);
  restored.set_name(name);
  EXPECT_EQ(LogitsOf(*stage, next), expected);

  next.mutable_restored_blocks(0)->set_name(std::string(16, 'o'));
  const v1::Step missing = stage->Run(next);
  EXPECT_EQ(missing.error().code(), static_cast<int>(absl::StatusCode::kNotFound));
  ExpectError(missing, "KV block 6f6f6f6f6f6f6f6f6f6f6f6f6f6f6f6f is not archived here");
  for (const auto& [block, bytes] : {std::pair{99u, 16}, std::pair{1u, 15}}) {
    next.mutable_restored_blocks(0)->set_block(block);
    next.mutable_restored_blocks(0)->set_name(std::string(static_cast<size_t>(bytes), 'n'));
    ExpectError(stage->Run(next), "an archived KV block");
  }
}

TEST_F(StageTest, AStepMayOnlyCopy) {
  const auto stage = *Create(*checkpoint_, {0, 4, true, true});
  const std::vector<float> expected = LogitsOf(*stage, MakeStep(1, 0, 6, 0));
  ASSERT_FALSE(stage->Run(MakeStep(1, 0, 5, 1)).has_error());
  v1::Step copies;
  for (const auto& [from, to] : {std::pair{1, 2}, {2, 3}}) {  // in order
    v1::BlockCopy& copy = *copies.add_block_copies();
    copy.set_from(static_cast<uint32_t>(from));
    copy.set_to(static_cast<uint32_t>(to));
  }
  EXPECT_FALSE(stage->Run(copies).has_error());
  v1::Step next = MakeStep(1, 5, 1, 3);
  next.mutable_slices(0)->set_token_ids(0, 10);
  EXPECT_EQ(LogitsOf(*stage, next), std::vector<float>(expected.begin() + 5 * 320, expected.end()));
}

TEST_F(StageTest, ASliceMayAskForAnyMix) {
  const auto stage = *Create(*checkpoint_, {0, 4, true, true});
  const std::vector<float> logits = LogitsOf(*stage, MakeStep(1, 0, 5));
  const auto row = [&](int i) { return absl::MakeConstSpan(logits).subspan(i * 320, 320); };
  for (const v1::SliceOutput output :
       {v1::SLICE_OUTPUT_NONE, v1::SLICE_OUTPUT_SAMPLE, v1::SLICE_OUTPUT_LOGITS}) {
    for (const int num_scored : {0, 2, 5}) {
      v1::Step step = MakeStep(1, 0, 5);
      v1::SequenceSlice& slice = *step.mutable_slices(0);
      slice.set_output(output);
      slice.mutable_sampling()->set_temperature(1);
      slice.mutable_sampling()->set_seed(3);
      slice.mutable_sampling()->set_num_alternatives(4);
      for (int i = 0; i < num_scored; ++i) slice.add_scored_token_ids(100);
      const v1::SliceResult result = RunOne(*stage, step);
      ASSERT_EQ(result.scored_size(), num_scored);
      for (int i = 0; i < num_scored; ++i) {
        EXPECT_EQ(FromProto(result.scored(i)), ScoreToken(row(i), 100, 4)) << i;
      }
      EXPECT_EQ(result.logits().size(),
                output == v1::SLICE_OUTPUT_LOGITS ? logits.size() * sizeof(float) : 0);
      ASSERT_EQ(result.sampled_size(), output == v1::SLICE_OUTPUT_SAMPLE ? 1 : 0);
      if (output == v1::SLICE_OUTPUT_SAMPLE) {
        EXPECT_EQ(FromProto(result.sampled(0)), SampleToken(row(4), slice.sampling(), {}, 5));
      }
    }
  }
}

TEST_F(StageTest, PenaltiesSeeTheHistory) {
  const auto stage = *Create(*checkpoint_, {0, 4, true, true});
  v1::Step step = MakeStep(1, 0, 5);
  const uint32_t likeliest = RunOne(*stage, step).sampled(0).token_id();
  v1::SequenceSlice& slice = *step.mutable_slices(0);
  slice.mutable_sampling()->set_repetition_penalty(100);
  EXPECT_EQ(RunOne(*stage, step).sampled(0).token_id(), likeliest);
  slice.mutable_history()->add_prompt_token_ids(likeliest);
  EXPECT_NE(RunOne(*stage, step).sampled(0).token_id(), likeliest);
}

TEST_F(StageTest, LoadsItsOwnTensorsAndNoOthers) {
  const CountingSource source(*checkpoint_);
  ASSERT_TRUE(Create(source, {2, 3, false, false}).ok());
  EXPECT_TRUE(source.names.contains("model.layers.2.mlp.experts.15.down_proj.weight"));
  EXPECT_TRUE(source.names.contains("model.layers.2.mlp.experts.15.down_proj.weight_scale_inv"));
  for (const std::string& name : source.names) {
    EXPECT_THAT(name, ::testing::StartsWith("model.layers.2."));
  }
}

TEST_F(StageTest, AReadThatFailsNamesTheTensor) {
  CountingSource source(*checkpoint_);
  source.broken = "model.layers.1.self_attn.o_proj.weight";
  const absl::Status status = Create(source, {0, 2, true, false}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(status.message(), "model.layers.1.self_attn.o_proj.weight: the disk failed");
}

TEST_F(StageTest, ItsWorkspaceIsThatWhichPlansCount) {
  const ModelConfig& config = checkpoint_->config();
  EXPECT_EQ(LayerWorkspace::Create(config, HostMemory(), 8)->num_bytes(),
            8 * LayerWorkspaceBytesPerRow(config));
  const std::unique_ptr<Backend> backend = *MakeCpuBackend({});
  EXPECT_EQ(RouterLookahead::Create(config, *backend)->num_bytes(), LookaheadBytes(config));
}

TEST_F(StageTest, AKvFormatThatDoesNotFitTheModelIsRefusedByName) {
  Stage::Options options;
  options.kv_budget_bytes = 1 << 20;
  options.kv_dtype = DType::kQ8_0;
  options.max_step_tokens = 8;
  const absl::Status status =
      Stage::Create(checkpoint_->config(), {0, 4, true, true}, *checkpoint_, *MakeCpuBackend({}),
                    options, [](int64_t, int64_t) { return true; })
          .status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(),
            "a KV cache of Q8_0 needs qk_rope_head_dim to be a multiple of 32; this model's is 16");
}

TEST_F(StageTest, ACacheOfF16GoesOnLikewiseInHalfTheMemory) {
  Stage::Options options;
  options.name = "worker 2 (box-b)";
  options.kv_dtype = DType::kF16;
  options.kv_budget_bytes = 4 * 4 * 64 * checkpoint_->config().Mla().kv_width() * 2;
  options.max_step_tokens = 8;
  const auto stage =
      *Stage::Create(checkpoint_->config(), {0, 4, true, true}, *checkpoint_, *MakeCpuBackend({}),
                     options, [](int64_t, int64_t) { return true; });
  EXPECT_EQ(stage->kv_cache().num_blocks(), 4);
  // A prompt at once, and cut with its first block copied in between, give the same bits.
  const std::vector<float> whole = LogitsOf(*stage, MakeStep(1, 0, 6, 0));
  ASSERT_FALSE(stage->Run(MakeStep(1, 0, 5, 1)).has_error());
  v1::Step next = MakeStep(1, 5, 1, 2);
  next.mutable_slices(0)->set_token_ids(0, 10);
  v1::BlockCopy& copy = *next.add_block_copies();
  copy.set_from(1);
  copy.set_to(2);
  EXPECT_EQ(LogitsOf(*stage, next), std::vector<float>(whole.begin() + 5 * 320, whole.end()));
}

TEST_F(StageTest, ProgressGrowsAndMayStopTheLoading) {
  int64_t last = -1;
  int64_t total = 0;
  ASSERT_TRUE(Create(*checkpoint_, {0, 4, true, true}, [&](int64_t done, int64_t all) {
                EXPECT_GT(done, last);
                last = done;
                total = all;
                return true;
              }).ok());
  EXPECT_EQ(last, total);
  EXPECT_EQ(
      Create(*checkpoint_, {0, 4, true, true}, [](int64_t done, int64_t) { return done == 0; })
          .status()
          .code(),
      absl::StatusCode::kCancelled);
}

}  // namespace
}  // namespace caravan
