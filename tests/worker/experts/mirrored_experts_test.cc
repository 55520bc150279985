// Experts of a pack whose files lie on several disks.

#include <cstring>
#include <filesystem>
#include <map>
#include <set>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/worker/experts/expert_testing.h"
#include "worker/experts/expert_store.h"

namespace caravan {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class MirroredExpertsTest : public ::testing::Test {
 protected:
  /// The mirror is whole at first.
  MirroredExpertsTest() {
    for (const auto& file : std::filesystem::directory_iterator(first())) {
      std::filesystem::copy_file(file.path(), mirror_.File(file.path().filename().string()));
    }
    for (int layer = 1; layer <= PackedToy::kLayers; ++layer) {
      for (int expert = 0; expert < PackedToy::kExperts; ++expert) {
        for (const char* const matrix : kMatrices) {
          const std::string name = NameOf(layer, expert, matrix);
          std::vector<std::byte>& bytes = bytes_[name];
          bytes.resize(static_cast<size_t>(toy_.model().Find(name)->num_bytes()));
          CARAVAN_CHECK(toy_.model().Read(name, absl::MakeSpan(bytes)).ok());
        }
      }
    }
  }

  const std::string& first() const { return toy_.model().path(); }
  const std::string& mirror() const { return mirror_.path(); }
  std::string PathIn(const std::string& directory, int layer) const {
    return absl::StrCat(directory, "/",
                        std::filesystem::path(toy_.PathOf(layer)).filename().string());
  }

  /// Changes a byte in the midst of an expert; a second time, it is as it was.
  void Flip(const std::string& directory, int layer, int expert) const {
    const int64_t at = toy_.OffsetOf(layer, expert) + 1000;
    std::fstream file(PathIn(directory, layer), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(at);
    const char byte = static_cast<char>(file.get() ^ 1);
    file.seekp(at);
    file.put(byte);
    CARAVAN_CHECK(file.good());
  }

  std::unique_ptr<ExpertStore> MakeStore(int slots) {
    const std::vector<std::string> mirrors = {mirror()};
    const auto model = PackedModel::Open(first(), mirrors);
    CARAVAN_CHECK(model.ok());
    ExpertStore::Options options;
    options.make_queue =
        [this](const ReadQueue::Options& reads) -> absl::StatusOr<std::unique_ptr<ReadQueue>> {
      absl::StatusOr<std::unique_ptr<ReadQueue>> queue = ReadQueue::Create(reads);
      if (!queue.ok()) return queue.status();
      return std::make_unique<UnrulyQueue>(*std::move(queue), 1, fault_);
    };
    auto store = ExpertStore::Create(toy_.config(), toy_.whole(), **model, slots * toy_.run_bytes(),
                                     options);
    CARAVAN_CHECK(store.ok());
    return *std::move(store);
  }

  /// A visit that needs these. All are given, with their bytes.
  absl::Status Visit(ExpertStore& store, int layer, const std::vector<int32_t>& ids) {
    const std::vector<float> weights(ids.size(), 0.25f);
    ExpertBatches& batches = store.Visit(layer, ids, weights);
    std::set<int32_t> given;
    while (true) {
      const auto batch = batches.Next();
      if (!batch.ok()) return batch.status();
      if (batch->empty()) break;
      for (const LoadedExpert& expert : *batch) {
        given.insert(expert.id);
        const Matrix* const matrices[] = {&expert.weights.gate, &expert.weights.up,
                                          &expert.weights.down};
        for (size_t i = 0; i < std::size(kMatrices); ++i) {
          const std::string name = NameOf(layer, expert.id, kMatrices[i]);
          const std::vector<std::byte>& bytes = bytes_.at(name);
          EXPECT_EQ(std::memcmp(matrices[i]->data, bytes.data(), bytes.size()), 0) << name;
        }
      }
    }
    EXPECT_EQ(given, std::set<int32_t>(ids.begin(), ids.end()));
    return absl::OkStatus();
  }

  static std::vector<int32_t> Rows(std::mt19937_64& rng, int rows) {
    std::vector<int32_t> ids;
    for (int i = 0; i < rows * PackedToy::kChosen; ++i) {
      ids.push_back(static_cast<int32_t>(rng() % PackedToy::kExperts));
    }
    return ids;
  }

  PackedToy toy_;
  TempDir mirror_;
  std::map<std::string, std::vector<std::byte>> bytes_;  // by tensor
  UnrulyQueue::Fault fault_;

 private:
  static constexpr const char* kMatrices[] = {"gate_proj", "up_proj", "down_proj"};
  static std::string NameOf(int layer, int expert, const char* matrix) {
    return absl::StrCat("model.layers.", layer, ".mlp.experts.", expert, ".", matrix, ".weight");
  }
};

TEST_F(MirroredExpertsTest, ReadsGoToTheDiskThatHasLeastToRead) {
  std::map<std::string, int> reads;  // by path
  fault_ = [&reads](const FileRead& read) {
    ++reads[read.file->path()];
    return absl::OkStatus();
  };
  const std::unique_ptr<ExpertStore> store = MakeStore(40);
  ASSERT_TRUE(Visit(*store, 1, {2, 5, 6, 7}).ok());
  EXPECT_EQ(reads[PathIn(first(), 1)], 2);
  EXPECT_EQ(reads[PathIn(mirror(), 1)], 2);
  ASSERT_TRUE(Visit(*store, 2, {2, 5, 6, 7, 9, 11}).ok());
  EXPECT_EQ(reads[PathIn(first(), 2)], 3);
  EXPECT_EQ(reads[PathIn(mirror(), 2)], 3);
  EXPECT_EQ(store->counters().failovers, 0);
}

TEST_F(MirroredExpertsTest, WrongBytesAreReadFromTheOtherDisk) {
  // Of four reads the first and third go to the first disk.
  Flip(first(), 1, 2);
  Flip(mirror(), 1, 5);
  for (const int slots : {4, 12, PackedToy::kAllExperts}) {
    const std::unique_ptr<ExpertStore> store = MakeStore(slots);
    ASSERT_TRUE(Visit(*store, 1, {2, 5, 6, 7}).ok()) << slots;
    EXPECT_EQ(store->counters().failovers, 2) << slots;
    ASSERT_TRUE(Visit(*store, 2, {2, 5, 6, 7}).ok()) << slots;
    EXPECT_EQ(store->counters().failovers, 2) << slots;
    std::mt19937_64 rng(1);
    for (const int rows : {1, 8, 64, 600}) {
      ASSERT_TRUE(Visit(*store, 1, Rows(rng, rows)).ok()) << slots << " slots, " << rows << " rows";
    }
  }
}

TEST_F(MirroredExpertsTest, ADiskThatFailsIsNoLoss) {
  for (const std::string& broken : {first(), mirror()}) {
    fault_ = [&broken](const FileRead& read) {
      return absl::StartsWith(read.file->path(), broken) ? absl::DataLossError("the disk says no")
                                                         : absl::OkStatus();
    };
    for (const int slots : {4, 9, 30, PackedToy::kAllExperts}) {
      const std::unique_ptr<ExpertStore> store = MakeStore(slots);
      std::mt19937_64 rng(1);
      for (const int rows : {1, 3, 64, 600, 1}) {
        for (const int layer : {1, 2, 3}) {
          ASSERT_TRUE(Visit(*store, layer, Rows(rng, rows)).ok())
              << slots << " slots, " << rows << " rows";
        }
      }
      EXPECT_GT(store->counters().failovers, 0);
    }
  }
}

TEST_F(MirroredExpertsTest, WhatEveryDiskLacksFailsItsVisitByName) {
  std::mt19937_64 faults(3);
  fault_ = [&faults](const FileRead& /*read*/) {
    return faults() % 4 == 0 ? absl::DataLossError("now and then") : absl::OkStatus();
  };
  int failed = 0;
  for (const int slots : {4, 9, 30, PackedToy::kAllExperts}) {
    const std::unique_ptr<ExpertStore> store = MakeStore(slots);
    std::mt19937_64 rng(4);
    for (int turn = 0; turn < 60; ++turn) {
      const int layer = 1 + turn % 3;
      const absl::Status status = Visit(*store, layer, Rows(rng, 1 << (turn % 7)));
      ASSERT_FALSE(HasFailure()) << slots << " slots, turn " << turn;
      if (status.ok()) continue;
      ++failed;
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
      EXPECT_THAT(std::string(status.message()),
                  AllOf(HasSubstr(absl::StrCat("layer ", layer, ", expert ")),
                        HasSubstr(std::filesystem::path(toy_.PathOf(layer)).filename().string()),
                        HasSubstr("now and then")));
    }
  }
  EXPECT_GT(failed, 10);
}

TEST_F(MirroredExpertsTest, WrongBytesOnEveryDiskAreNotGiven) {
  Flip(first(), 2, 5);
  Flip(mirror(), 2, 5);
  for (const int slots : {4, PackedToy::kAllExperts}) {
    const std::unique_ptr<ExpertStore> store = MakeStore(slots);
    for (int turn = 0; turn < 2; ++turn) {
      const absl::Status status = Visit(*store, 2, {2, 5, 6, 7});
      EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss) << status;
      EXPECT_THAT(std::string(status.message()),
                  AllOf(HasSubstr("layer 2, expert 5, in "), HasSubstr("hash")));
    }
    Flip(mirror(), 2, 5);
    EXPECT_TRUE(Visit(*store, 2, {2, 5, 6, 7}).ok());
    Flip(mirror(), 2, 5);
  }
}

TEST_F(MirroredExpertsTest, APackMayBeSplit) {
  std::filesystem::remove(PathIn(first(), 1));
  std::filesystem::remove(PathIn(mirror(), 2));
  EXPECT_EQ(PackedModel::Open(first()).status().code(), absl::StatusCode::kNotFound);
  const std::unique_ptr<ExpertStore> store = MakeStore(12);
  for (const int layer : {1, 2, 3}) ASSERT_TRUE(Visit(*store, layer, {1, 2, 3, 4}).ok());
}

TEST_F(MirroredExpertsTest, RefusesADirectoryThatIsGivenTwice) {
  const std::string spelt_otherwise = first() + "/.";
  for (const std::vector<std::string>& mirrors :
       {std::vector<std::string>{first()}, {spelt_otherwise}, {mirror(), mirror() + "/"}}) {
    const absl::Status status = PackedModel::Open(first(), mirrors).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(status.message()),
                ::testing::StartsWith(mirrors.back() + ": a mirror must be another directory"));
  }
}

TEST_F(MirroredExpertsTest, RefusesMirrorsThatAreNone) {
  const std::vector<std::string> mirrors = {mirror()};
  const auto expect_refused = [&](absl::StatusCode code, const std::string& names) {
    const absl::Status status = PackedModel::Open(first(), mirrors).status();
    EXPECT_EQ(status.code(), code) << status;
    EXPECT_THAT(std::string(status.message()), HasSubstr(names));
  };
  const std::string cut = PathIn(mirror(), 1);
  std::filesystem::resize_file(cut, 4096);
  expect_refused(absl::StatusCode::kInvalidArgument, cut);
  std::filesystem::remove(cut);
  EXPECT_TRUE(PackedModel::Open(first(), mirrors).ok());
  std::filesystem::remove(PathIn(first(), 1));
  expect_refused(absl::StatusCode::kNotFound, PathIn(first(), 1));
  std::ofstream(mirror_.File(kPackManifestName), std::ios::app) << " ";
  expect_refused(absl::StatusCode::kInvalidArgument, mirror_.File(kPackManifestName));
  std::filesystem::remove(mirror_.File(kPackManifestName));
  expect_refused(absl::StatusCode::kInvalidArgument, mirror());
}

}  // namespace
}  // namespace caravan
