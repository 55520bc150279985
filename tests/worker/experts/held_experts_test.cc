// What of a former stage's experts the next one finds in memory, without a read.

#include "worker/experts/held_experts.h"

#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "gtest/gtest.h"
#include "tests/worker/experts/expert_store_testing.h"

namespace caravan {
namespace {

constexpr int64_t kFrame = 8192;

/// Frames of `num_frames`, in each of which lies its own number.
HeldExperts MakeHeld(int num_frames, const std::vector<HeldExperts::Expert>& experts) {
  HeldExperts held;
  held.layers = {3, 4, 5};
  held.frame_bytes = kFrame;
  held.memory = *Buffer::Allocate(num_frames * kFrame);
  for (int frame = 0; frame < num_frames; ++frame) {
    held.memory.data()[frame * kFrame] = static_cast<std::byte>(frame);
    held.memory.data()[(frame + 1) * kFrame - 1] = static_cast<std::byte>(frame);
  }
  held.experts = experts;
  return held;
}

/// The frame in which it lay first.
int OriginOf(const HeldExperts& held, const HeldExperts::Expert& expert) {
  const std::byte* const frame = held.memory.data() + expert.frame * kFrame;
  EXPECT_EQ(frame[0], frame[kFrame - 1]);
  return static_cast<int>(frame[0]);
}

TEST(HeldExpertsTest, OfLayersThatStayThoseAreKeptThatGiveWayLast) {
  HeldExperts held =
      MakeHeld(8, {{{4, 0}, 7}, {{3, 1}, 0}, {{5, 2}, 1}, {{4, 3}, 6}, {{5, 4}, 2}, {{4, 5}, 5}});
  held.Fit({4, 5, 6}, kFrame, /*num_frames=*/5, /*most=*/4);
  EXPECT_EQ(held.layers, (std::vector<int>{4, 5}));
  EXPECT_EQ(held.memory.size(), 5 * kFrame);
  const std::pair<ExpertKey, int> expected[] = {{{5, 2}, 1}, {{4, 3}, 6}, {{5, 4}, 2}, {{4, 5}, 5}};
  ASSERT_EQ(held.experts.size(), 4u);
  std::set<int> frames;
  for (size_t i = 0; i < 4; ++i) {
    const HeldExperts::Expert& expert = held.experts[i];
    EXPECT_EQ(expert.key, expected[i].first);
    ASSERT_LT(expert.frame, 5);
    EXPECT_EQ(OriginOf(held, expert), expected[i].second);
    frames.insert(expert.frame);
    if (expected[i].second < 5) {
      EXPECT_EQ(expert.frame, expected[i].second) << "no need to move it";
    }
  }
  EXPECT_EQ(frames.size(), 4u);
}

TEST(HeldExpertsTest, WithMoreFramesNothingMoves) {
  HeldExperts held = MakeHeld(3, {{{4, 0}, 2}, {{4, 1}, 0}});
  held.Fit({3, 4, 5}, kFrame, /*num_frames=*/40, /*most=*/30);
  EXPECT_EQ(held.memory.size(), 40 * kFrame);
  ASSERT_EQ(held.experts.size(), 2u);
  EXPECT_EQ(OriginOf(held, held.experts[0]), 2);
  EXPECT_EQ(OriginOf(held, held.experts[1]), 0);
}

TEST(HeldExpertsTest, WhereNothingIsOfUseThereIsNoMemoryEither) {
  HeldExperts elsewhere = MakeHeld(3, {{{4, 0}, 2}, {{4, 1}, 0}});
  elsewhere.Fit({6, 7}, kFrame, 3, 2);
  HeldExperts other_size = MakeHeld(3, {{{4, 0}, 2}, {{4, 1}, 0}});
  other_size.Fit({4, 5}, 2 * kFrame, 3, 2);
  HeldExperts no_memory;
  no_memory.layers = {4};
  no_memory.frame_bytes = int64_t{1} << 30;
  no_memory.memory = *Buffer::Allocate(no_memory.frame_bytes);  // backed where it is touched
  no_memory.experts = {{{4, 0}, 0}};
  no_memory.Fit({4, 5}, no_memory.frame_bytes, 1 << 20, 2);
  HeldExperts nothing;
  nothing.Fit({4, 5}, kFrame, 3, 2);
  for (const HeldExperts* held : {&elsewhere, &other_size, &no_memory, &nothing}) {
    EXPECT_TRUE(held->experts.empty());
    EXPECT_TRUE(held->layers.empty());
    EXPECT_EQ(held->memory.size(), 0);
  }
}

bool GoOn(int64_t, int64_t) { return true; }

class HandedOverExpertsTest : public ExpertStoreTest {
 protected:
  /// Of layers [first, end) of the toy, and its drafting layer if they end there.
  std::unique_ptr<ExpertStore> Make(int first, int end, int slots, HeldExperts held) {
    StageSpec stage{first, end, false, end == PackedToy::kLayers, end == PackedToy::kLayers};
    auto store = ExpertStore::Create(toy_->config(), stage, toy_->model(),
                                     slots * toy_->run_bytes(), Options(), std::move(held));
    CARAVAN_CHECK(store.ok());
    EXPECT_EQ((*store)->num_bytes(), slots * toy_->run_bytes());
    return *std::move(store);
  }
};

TEST_F(HandedOverExpertsTest, AreFoundWithoutARead) {
  std::unique_ptr<ExpertStore> store = Make(1, 3, 24, {});
  const Choice of_1({1, 3, 5, 7});
  const Choice of_2({0, 2, 4, 6});
  for (int step = 0; step < 2; ++step) {
    ASSERT_TRUE(VisitAll(*store, 1, of_1).ok());
    ASSERT_TRUE(VisitAll(*store, 2, of_2).ok());
  }
  HeldExperts held = ExpertStore::Release(std::move(store));
  EXPECT_EQ(held.experts.size(), 8u);
  EXPECT_EQ(held.memory.size(), 24 * toy_->run_bytes());
  // Layer 1 stays, and there are fewer slots, though all that stay have one.
  store = Make(0, 2, 6, std::move(held));
  EXPECT_EQ(store->warm_bytes(), 0);
  ASSERT_TRUE(VisitAll(*store, 1, of_1).ok());
  EXPECT_EQ(store->counters().hits, 4);
  EXPECT_EQ(store->counters().reads, 0);
  EXPECT_EQ(store->counters().bytes_read, 0);
  // More slots than before, and another layer.
  store = Make(1, 3, 30, ExpertStore::Release(std::move(store)));
  ASSERT_TRUE(VisitAll(*store, 1, of_1).ok());
  EXPECT_EQ(store->counters().bytes_read, 0);
  ASSERT_TRUE(VisitAll(*store, 2, of_2).ok());
  EXPECT_EQ(store->counters().bytes_read, 4 * toy_->run_bytes());
}

TEST_F(HandedOverExpertsTest, OfTooManyTheLeastUsedAreReadAgain) {
  std::unique_ptr<ExpertStore> store = Make(1, 2, 16, {});
  for (const std::vector<int32_t>& row :
       {std::vector<int32_t>{8, 9, 10, 11}, {0, 1, 2, 3}, {0, 1, 4, 5}, {0, 1, 4, 5}}) {
    ASSERT_TRUE(VisitAll(*store, 1, Choice(row)).ok());
  }
  HeldExperts held = ExpertStore::Release(std::move(store));
  EXPECT_EQ(held.experts.size(), 10u);
  // Four of the cache, one through which experts pass.
  store = Make(1, 2, 5, std::move(held));
  ASSERT_EQ(store->cache().shape().num_slots, 4);
  const int64_t before = store->counters().bytes_read;
  ASSERT_TRUE(VisitAll(*store, 1, Choice({0, 1, 4, 5})).ok());
  EXPECT_EQ(store->counters().bytes_read, before);
  ASSERT_TRUE(VisitAll(*store, 1, Choice({2, 8, 9, 10})).ok());
  EXPECT_EQ(store->counters().bytes_read, before + 4 * toy_->run_bytes());
}

TEST_F(HandedOverExpertsTest, WhatWasLearnedOfNewLayersIsReadBeforeAndNothingOfThoseThatStayed) {
  std::unique_ptr<ExpertStore> store = Make(1, 2, 8, {});
  ASSERT_TRUE(store->Warm(GoOn).ok());
  ASSERT_TRUE(VisitAll(*store, 1, Choice({1, 3, 5, 7})).ok());
  ASSERT_TRUE(VisitAll(*store, 1, Choice({8, 9, 10, 11})).ok());
  HeldExperts held = ExpertStore::Release(std::move(store));
  const UseHistory uses = held.uses;
  const size_t found = held.experts.size();
  ASSERT_LT(found, 8u);  // some of the layer's had gone
  store = Make(1, 3, 30, std::move(held));
  store->cache().Continue(uses);
  store->cache().SetScore({2, 6}, 1);
  store->cache().SetScore({2, 7}, 1);
  EXPECT_EQ(store->warm_bytes(), 2 * toy_->run_bytes());
  ASSERT_TRUE(store->Warm(GoOn).ok());
  EXPECT_EQ(store->counters().bytes_read, 2 * toy_->run_bytes());
}

TEST_F(HandedOverExpertsTest, WhatAStartThatWasStoppedDidNotReadTheNextOneReads) {
  const int64_t layer_bytes = PackedToy::kExperts * toy_->run_bytes();
  std::unique_ptr<ExpertStore> store = Make(1, 2, PackedToy::kExperts, {});
  ASSERT_TRUE(store->Warm(GoOn).ok());
  ASSERT_EQ(store->counters().bytes_read, layer_bytes);
  const auto next = [&] {
    return Make(1, PackedToy::kLayers, PackedToy::kAllExperts,
                ExpertStore::Release(std::move(store)));
  };
  store = next();
  EXPECT_EQ(store->warm_bytes(), 2 * layer_bytes);
  // Stopped before it began, then in its midst.
  store = next();
  EXPECT_EQ(store->warm_bytes(), 2 * layer_bytes);
  const auto stop = [&](int64_t done, int64_t) { return done < layer_bytes; };
  EXPECT_EQ(store->Warm(stop).code(), absl::StatusCode::kCancelled);
  const int64_t read = store->counters().bytes_read;
  EXPECT_GE(read, layer_bytes);
  store = next();
  EXPECT_EQ(store->warm_bytes(), 2 * layer_bytes);
  ASSERT_TRUE(store->Warm(GoOn).ok());
  EXPECT_LE(store->counters().bytes_read, layer_bytes) << "what was read by then lay there";
  store = next();
  EXPECT_EQ(store->warm_bytes(), 0);
  for (const int layer : {1, 2, 3}) {
    ASSERT_TRUE(VisitAll(*store, layer, Choice({0, 5, 9, 15})).ok());
  }
  EXPECT_EQ(store->counters().misses, 0);
}

TEST_F(HandedOverExpertsTest, AreWholeWhateverWasUnderWay) {
  for (int round = 0; round < 30; ++round) {
    seed_ = static_cast<uint64_t>(round + 1);
    Rng rng(seed_);
    std::unique_ptr<ExpertStore> store = Make(1, 3, RandomInt(rng, 5, 48), {});
    for (int stage = 0; stage < 4; ++stage) {
      const std::vector<int> layers = store->files().layers();
      const int steps = RandomInt(rng, 0, 4);
      for (int step = 0; step < steps; ++step) {
        for (const int layer : layers) {
          const Choice choice(rng, RandomInt(rng, 1, 8));
          ASSERT_TRUE(VisitAll(*store, layer, choice).ok()) << "round " << round;
          Guess(*store, store->files().NextLayer(layer), {1, 4, 9, 14});
        }
      }
      if (RandomInt(rng, 0, 1) == 0) {  // a visit that is left, with reads under way
        const Choice choice(rng, 4);
        store->Visit(layers.front(), choice.ids, choice.weights);
      }
      HeldExperts held = ExpertStore::Release(std::move(store));
      const int first = RandomInt(rng, 1, 2);
      const int end = RandomInt(rng, first + 1, 3);
      const int most = PackedToy::kExperts * (end - first + (end == PackedToy::kLayers ? 1 : 0));
      std::set<std::pair<int, int>> kept;
      for (const HeldExperts::Expert& expert : held.experts) {
        if (expert.key.layer < first || (expert.key.layer >= end && end < PackedToy::kLayers)) {
          continue;
        }
        kept.insert({expert.key.layer, expert.key.expert});
      }
      store = Make(first, end, RandomInt(rng, 5, most), std::move(held));
      int64_t lying = 0;
      for (const auto& [layer, expert] : kept) {
        if (store->cache().Find({layer, expert}).has_value()) ++lying;
      }
      EXPECT_EQ(lying, std::min<int64_t>(std::ssize(kept), store->cache().shape().num_slots));
    }
  }
}

}  // namespace
}  // namespace caravan
