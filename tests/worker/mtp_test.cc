// Drafts by the layer of multi-token prediction, and what becomes of them: through real stages,
// with a loop in place of the coordinator.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "kernels/cpu/cpu_backend.h"
#include "model/scored_token.h"
#include "tests/support/golden.h"
#include "tests/support/golden_replies.h"
#include "worker/stage.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

/// A model on `num_stages` stages, the last of which drafts if the model can.
class Ring {
 public:
  explicit Ring(int num_stages, const GoldenModel& model = kTinyR1)
      : checkpoint_(MustOpenCheckpoint(model.directory)) {
    const int num_layers = config().num_hidden_layers;
    for (int i = 0; i < num_stages; ++i) {
      const bool is_last = i + 1 == num_stages;
      stages_.push_back(Load({num_layers * i / num_stages, num_layers * (i + 1) / num_stages,
                              i == 0, is_last, is_last && config().num_nextn_predict_layers > 0}));
    }
  }

  const ModelConfig& config() const { return checkpoint_->config(); }

  std::unique_ptr<Stage> Load(const StageSpec& spec) const {
    Stage::Options options;
    options.name = "worker";
    options.kv_budget_bytes = 16 << 20;
    options.max_step_tokens = 256;
    auto stage = Stage::Create(config(), spec, *checkpoint_, *MakeCpuBackend({}), options,
                               [](int64_t, int64_t) { return true; });
    CARAVAN_CHECK(stage.ok());
    return *std::move(stage);
  }

  /// Once round.
  v1::Step Run(v1::Step step) {
    for (const auto& stage : stages_) step = stage->Run(std::move(step));
    EXPECT_FALSE(step.has_error()) << step.error().message();
    return step;
  }

  /// Of a step with one slice.
  v1::SliceResult RunSlice(const v1::SequenceSlice& slice) {
    v1::Step step;
    *step.add_slices() = slice;
    return Run(std::move(step)).results(0);
  }

 private:
  const std::unique_ptr<Checkpoint> checkpoint_;
  std::vector<std::unique_ptr<Stage>> stages_;
};

/// Tokens at [first_position, first_position + tokens.size()), in blocks from `first_block` on.
v1::SequenceSlice MakeSlice(int64_t first_position, absl::Span<const int32_t> tokens,
                            v1::SliceOutput output, uint32_t first_block = 0) {
  v1::SequenceSlice slice;
  slice.set_sequence_id(1);
  slice.set_first_position(static_cast<uint32_t>(first_position));
  for (const int32_t id : tokens) slice.add_token_ids(static_cast<uint32_t>(id));
  slice.set_output(output);
  for (uint32_t block = 0; block < 8; ++block) slice.add_kv_blocks(first_block + block);
  return slice;
}

std::vector<float> Floats(const std::string& bytes) {
  std::vector<float> values(bytes.size() / sizeof(float));
  std::memcpy(values.data(), bytes.data(), bytes.size());
  return values;
}

/// How a reply came about.
struct Generated {
  std::vector<ScoredToken> tokens;
  int steps = 0;    // that sampled, but for the prompt's
  int drafted = 0;  // drafts that were offered
  int accepted = 0;

  std::vector<int32_t> ids() const {
    std::vector<int32_t> ids;
    for (const ScoredToken& token : tokens) ids.push_back(token.token_id);
    return ids;
  }
};

/// What drafts come before the last stage, given those that it made.
using ChangeDrafts = std::function<void(std::vector<int32_t>& drafts)>;

/// `num_tokens` tokens after the prompt. With `speculate`, each step offers the drafts of the one
/// before, as `change` leaves them.
Generated Generate(
    Ring& ring, const std::vector<int32_t>& prompt, size_t num_tokens,
    const v1::SamplingParams& sampling, bool speculate,
    const ChangeDrafts& change = [](std::vector<int32_t>&) {}) {
  Generated generated;
  std::vector<int32_t> tokens = prompt;
  std::vector<int32_t> drafts;
  size_t cached = 0;  // tokens whose keys and values are there
  while (generated.tokens.size() < num_tokens) {
    std::vector<int32_t> rows(tokens.begin() + static_cast<int64_t>(cached), tokens.end());
    rows.insert(rows.end(), drafts.begin(), drafts.end());
    v1::SequenceSlice slice =
        MakeSlice(static_cast<int64_t>(cached), rows, v1::SLICE_OUTPUT_SAMPLE);
    *slice.mutable_sampling() = sampling;
    for (const int32_t id : prompt) {
      slice.mutable_history()->add_prompt_token_ids(static_cast<uint32_t>(id));
    }
    for (const int32_t id : generated.ids()) {
      slice.mutable_history()->add_reply_token_ids(static_cast<uint32_t>(id));
    }
    slice.set_num_draft_tokens(static_cast<uint32_t>(drafts.size()));
    slice.set_draft(speculate);
    const v1::SliceResult result = ring.RunSlice(slice);
    CARAVAN_CHECK(result.sampled_size() > 0 &&
                  result.sampled_size() <= static_cast<int>(drafts.size()) + 1);
    if (cached > 0) ++generated.steps;
    generated.drafted += static_cast<int>(drafts.size());
    generated.accepted += result.sampled_size() - 1;
    cached = tokens.size() + static_cast<size_t>(result.sampled_size()) - 1;
    for (const v1::TokenScore& score : result.sampled()) {
      generated.tokens.push_back(FromProto(score));
      tokens.push_back(static_cast<int32_t>(score.token_id()));
    }
    EXPECT_EQ(result.draft_token_ids_size(), speculate ? 1 : 0);
    drafts.assign(result.draft_token_ids().begin(), result.draft_token_ids().end());
    change(drafts);
  }
  generated.tokens.resize(num_tokens);
  return generated;
}

class MtpGoldenTest : public ::testing::TestWithParam<int> {};

TEST_P(MtpGoldenTest, ExpectsWhatTheReferenceExpects) {
  Ring ring(GetParam());
  const auto golden = MustOpenGolden(kTinyR1.golden);
  for (const std::string index : {"0", "2"}) {
    const std::vector<int32_t> ids = GoldenValues<int32_t>(*golden, "ids_" + index);
    v1::SequenceSlice slice = MakeSlice(0, ids, v1::SLICE_OUTPUT_LOGITS);
    slice.set_draft(true);
    const v1::SliceResult result = ring.RunSlice(slice);
    EXPECT_LE(
        RelativeError(Floats(result.logits()), GoldenValues<float>(*golden, "logits_" + index)),
        1e-4);
    EXPECT_LE(RelativeError(Floats(result.mtp_logits()),
                            GoldenValues<float>(*golden, "mtp_logits_" + index)),
              1e-4)
        << "list " << index;

    // In chunks of 7 the same, to the bit.
    std::string in_chunks;
    for (size_t first = 0; first < ids.size(); first += 7) {
      const auto chunk = absl::MakeConstSpan(ids).subspan(first, 7);
      v1::SequenceSlice part =
          MakeSlice(static_cast<int64_t>(first), chunk, v1::SLICE_OUTPUT_LOGITS, 8);
      part.set_draft(true);
      if (first + 7 < ids.size()) part.set_next_token_id(static_cast<uint32_t>(ids[first + 7]));
      in_chunks += ring.RunSlice(part).mtp_logits();
    }
    EXPECT_EQ(in_chunks, result.mtp_logits());
  }
}

INSTANTIATE_TEST_SUITE_P(Stages, MtpGoldenTest, ::testing::Values(1, 2, 3),
                         ::testing::PrintToStringParamName());

TEST(MtpTest, DraftsAreMostlyRightAndNeverChangeAGreedyReply) {
  Ring ring(2);
  int steps = 0;
  int drafted = 0;
  int accepted = 0;
  int num_tokens = 0;
  const std::vector<GoldenReply> replies = ReadGoldenReplies();
  for (size_t i = 0; i < replies.size(); i += 3) {  // one of each task
    const GoldenReply& golden = replies[i];
    const size_t length = golden.reply.size();
    const Generated with = Generate(ring, golden.prompt, length, {}, true);
    const Generated without = Generate(ring, golden.prompt, length, {}, false);
    EXPECT_EQ(with.tokens, without.tokens);  // log-probabilities too, to the bit
    EXPECT_EQ(with.ids(), golden.reply);
    steps += with.steps;
    drafted += with.drafted;
    accepted += with.accepted;
    num_tokens += static_cast<int>(length);
  }
  EXPECT_GT(accepted, 0.95 * drafted);
  RecordProperty("drafted", drafted);
  RecordProperty("accepted", accepted);
  // A step gives nearly two tokens.
  EXPECT_LT(steps, 0.6 * num_tokens);
}

TEST(MtpTest, DraftsNeverChangeASampledReply) {
  Ring ring(1);
  v1::SamplingParams sampling;
  sampling.set_temperature(1.3f);
  sampling.set_top_p(0.98f);
  sampling.set_frequency_penalty(0.4f);
  sampling.set_repetition_penalty(1.1f);
  sampling.set_num_alternatives(2);
  const std::vector<GoldenReply> replies = ReadGoldenReplies();
  for (size_t i = 0; i < 6; ++i) {
    sampling.set_seed(i);
    EXPECT_EQ(Generate(ring, replies[5 * i].prompt, 50, sampling, true).tokens,
              Generate(ring, replies[5 * i].prompt, 50, sampling, false).tokens)
        << "seed " << i;
  }
}

TEST(MtpTest, WrongDraftsCostNothingButTheirRows) {
  Ring ring(1);
  const GoldenReply golden = ReadGoldenReplies()[0];
  const size_t length = golden.reply.size();
  const Generated without = Generate(ring, golden.prompt, length, {}, false);
  std::mt19937 random(7);
  // Up to three drafts, right ones among wrong ones.
  const Generated with =
      Generate(ring, golden.prompt, length, {}, true, [&](std::vector<int32_t>& drafts) {
        while (random() % 2 == 0 && drafts.size() < 3) {
          drafts.push_back(static_cast<int32_t>(random() % 2048));
        }
        if (random() % 3 == 0) drafts[0] = static_cast<int32_t>(random() % 2048);
        if (random() % 5 == 0) drafts.clear();
      });
  EXPECT_EQ(with.tokens, without.tokens);
  EXPECT_GT(with.accepted, 0);
  EXPECT_LT(with.accepted, with.drafted);
}

TEST(MtpTest, AcceptsSeveralDraftsAtOnce) {
  Ring ring(1);
  const GoldenReply golden = ReadGoldenReplies()[0];
  ring.RunSlice(MakeSlice(0, golden.prompt, v1::SLICE_OUTPUT_SAMPLE));
  // The first token of the reply, three right drafts, a wrong one and a right one behind it.
  std::vector<int32_t> rows(golden.reply.begin(), golden.reply.begin() + 6);
  rows[4] = rows[4] == 7 ? 8 : 7;
  v1::SequenceSlice slice =
      MakeSlice(static_cast<int64_t>(golden.prompt.size()), rows, v1::SLICE_OUTPUT_SAMPLE);
  slice.set_num_draft_tokens(5);
  const v1::SliceResult result = ring.RunSlice(slice);
  ASSERT_EQ(result.sampled_size(), 4);
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(static_cast<int32_t>(result.sampled(i).token_id()),
              golden.reply[static_cast<size_t>(i) + 1]);
  }
}

// Whatever the draft, tokens are distributed as the model says, and a draft is accepted as often as
// the model would have said it: what rejection sampling promises (arXiv:2211.17192).
TEST(MtpTest, SampledTokensFollowTheModelWhateverTheDraft) {
  Ring ring(1, SmallGoldenModel("v3-like"));
  const std::vector<int32_t> prompt = {5, 6, 7};
  ring.RunSlice(MakeSlice(0, prompt, v1::SLICE_OUTPUT_NONE));
  const std::vector<float> logits =
      Floats(ring.RunSlice(MakeSlice(3, {8}, v1::SLICE_OUTPUT_LOGITS)).logits());
  std::vector<std::pair<double, int32_t>> kept;  // (probability, token), likeliest first
  for (size_t id = 0; id < logits.size(); ++id) {
    kept.push_back({std::exp(logits[id] / 2.0), static_cast<int32_t>(id)});
  }
  std::sort(kept.rbegin(), kept.rend());
  const int32_t never = kept[6].second;
  kept.resize(6);
  double sum = 0;
  for (const auto& [weight, id] : kept) sum += weight;
  for (auto& [weight, id] : kept) weight /= sum;

  constexpr int kDraws = 2000;
  for (const int32_t draft : {kept[0].second, kept[4].second, never}) {
    std::map<int32_t, int> counts;
    int accepted = 0;
    v1::SequenceSlice slice = MakeSlice(3, {8, draft}, v1::SLICE_OUTPUT_SAMPLE);
    slice.set_num_draft_tokens(1);
    slice.mutable_sampling()->set_temperature(2);
    slice.mutable_sampling()->set_top_k(6);
    for (int seed = 0; seed < kDraws; ++seed) {
      slice.mutable_sampling()->set_seed(static_cast<uint64_t>(seed));
      const v1::SliceResult result = ring.RunSlice(slice);
      ++counts[static_cast<int32_t>(result.sampled(0).token_id())];
      if (result.sampled_size() == 2) ++accepted;
    }
    EXPECT_EQ(accepted, counts[draft]);
    double chi_square = 0;
    int drawn = 0;
    for (const auto& [p, id] : kept) {
      chi_square += std::pow(counts[id] - p * kDraws, 2) / (p * kDraws);
      drawn += counts[id];
    }
    EXPECT_EQ(drawn, kDraws);
    EXPECT_LT(chi_square, 35.89) << "draft " << draft;  // 5 degrees of freedom, 1 - 1e-6
  }
}

TEST(MtpTest, ASharedPrefixCostsNoToken) {
  // The block of the first 64 tokens is another sequence's: what MTP keeps of its last position
  // stands for another next token.
  Ring ring(1);
  const auto golden = MustOpenGolden(kTinyR1.golden);
  std::vector<int32_t> ids = GoldenValues<int32_t>(*golden, "ids_2");
  ids.resize(70);
  const auto generate = [&](bool shared) {
    std::vector<int32_t> other = ids;
    if (shared) other[64] = (other[64] + 1) % 2048;
    v1::SequenceSlice first = MakeSlice(0, other, v1::SLICE_OUTPUT_NONE);
    first.set_draft(true);
    ring.RunSlice(first);
    v1::SequenceSlice rest =
        MakeSlice(64, absl::MakeConstSpan(ids).subspan(64), v1::SLICE_OUTPUT_SAMPLE, 8);
    rest.set_kv_blocks(0, 0);
    rest.set_draft(true);
    return ring.RunSlice(rest);
  };
  const v1::SliceResult own = generate(false);
  const v1::SliceResult shared = generate(true);
  EXPECT_EQ(own.sampled(0).SerializeAsString(), shared.sampled(0).SerializeAsString());
  EXPECT_EQ(shared.draft_token_ids_size(), 1);
}

TEST(MtpTest, AStageWithoutTheLayerRefusesToDraft) {
  const Ring ring(1);
  const int num_layers = ring.config().num_hidden_layers;
  const auto stage = ring.Load({0, num_layers, true, true, false});
  v1::Step step;
  *step.add_slices() = MakeSlice(0, {5, 6}, v1::SLICE_OUTPUT_SAMPLE);
  step.mutable_slices(0)->set_draft(true);
  EXPECT_THAT(stage->Run(step).error().message(),
              HasSubstr("sequence 1: asks for drafts, but no MTP layer is here"));
}

TEST(MtpTest, OnlyAStageWithTheHeadDrafts) {
  const auto checkpoint = MustOpenCheckpoint(SmallGoldenModel("v3-like").directory);
  for (const StageSpec& spec : {StageSpec{0, 2, true, false, true}, {2, 4, false, true, true}}) {
    EXPECT_EQ(Stage::Create(checkpoint->config(), spec, *checkpoint, *MakeCpuBackend({}), {},
                            [](int64_t, int64_t) { return true; })
                  .status()
                  .code(),
              absl::StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace caravan
