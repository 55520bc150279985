#include "worker/files/model_cache.h"

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

namespace fs = std::filesystem;

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kModel = 0x0123456789abcdef;
constexpr int64_t kFileBytes = 1000;

PackedFile FileOf(const std::string& name, int64_t bytes = kFileBytes) {
  PackedFile file;
  file.name = name;
  file.bytes = bytes;
  return file;
}

class ModelCacheTest : public ::testing::Test {
 protected:
  std::unique_ptr<ModelCache> Open(int64_t budget_bytes = 0) {
    absl::StatusOr<std::unique_ptr<ModelCache>> cache =
        ModelCache::Open({dir_.File("cache"), budget_bytes});
    EXPECT_TRUE(cache.ok()) << cache.status();
    return *std::move(cache);
  }
  /// A file that was used `age` hours ago.
  std::string Put(const ModelCache& cache, uint64_t model, const std::string& name, int age) {
    EXPECT_TRUE(cache.MakeDirectory(model).ok());
    const std::string path = JoinPath(cache.DirectoryOf(model), name);
    std::ofstream(path) << std::string(kFileBytes, 'x');
    fs::last_write_time(path, fs::file_time_type::clock::now() - std::chrono::hours(age));
    return path;
  }
  static std::unique_ptr<ModelCache::Lease> Take(ModelCache& cache,
                                                 const std::vector<PackedFile>& files) {
    EXPECT_TRUE(cache.MakeDirectory(kModel).ok());
    absl::StatusOr<std::unique_ptr<ModelCache::Lease>> lease = cache.Take(kModel, files);
    EXPECT_TRUE(lease.ok()) << lease.status();
    return lease.ok() ? *std::move(lease) : nullptr;
  }

  const TempDir dir_;
};

TEST_F(ModelCacheTest, WhatWasUsedLongestAgoMakesRoomWhicheverModelItIsOf) {
  const auto cache = Open(/*budget_bytes=*/3 * kFileBytes);
  const std::string oldest = Put(*cache, kModel + 1, "layer-000.bin.part", 9);
  Put(*cache, kModel + 1, "layer-000.bin.have", 9);
  const std::string older = Put(*cache, kModel, "layer-001.bin", 8);
  const std::string newer = Put(*cache, kModel, "layer-002.bin", 7);
  const std::string wanted = Put(*cache, kModel, "layer-003.bin", 10);
  const auto lease = Take(*cache, {FileOf("layer-003.bin"), FileOf("layer-004.bin")});
  EXPECT_FALSE(FileExists(oldest));
  EXPECT_FALSE(FileExists(JoinPath(cache->DirectoryOf(kModel + 1), "layer-000.bin.have")));
  EXPECT_FALSE(FileExists(older));
  EXPECT_TRUE(FileExists(newer));
  EXPECT_TRUE(FileExists(wanted));
}

TEST_F(ModelCacheTest, UsingAFileMakesItTheNewest) {
  const auto cache = Open(/*budget_bytes=*/2 * kFileBytes);
  const std::string old_but_used = Put(*cache, kModel, "layer-001.bin", 9);
  const std::string other = Put(*cache, kModel, "layer-002.bin", 1);
  Take(*cache, {FileOf("layer-001.bin")});
  Take(*cache, {FileOf("layer-003.bin")});
  EXPECT_TRUE(FileExists(old_but_used));
  EXPECT_FALSE(FileExists(other));
}

TEST_F(ModelCacheTest, FilesInUseStayAndTheErrorSaysWhatIsLacking) {
  const auto cache = Open(/*budget_bytes=*/2 * kFileBytes);
  const std::string in_use = Put(*cache, kModel, "layer-001.bin", 9);
  const std::string spare = Put(*cache, kModel, "layer-002.bin", 1);
  auto lease = Take(*cache, {FileOf("layer-001.bin")});
  const std::vector<PackedFile> next = {FileOf("layer-003.bin"), FileOf("layer-004.bin")};
  const absl::Status refused = cache->Take(kModel, next).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()),
              AllOf(HasSubstr(dir_.File("cache")), HasSubstr("with those of the present stage"),
                    HasSubstr("--model-cache-size")));
  EXPECT_TRUE(FileExists(in_use));
  EXPECT_TRUE(FileExists(spare));  // nothing goes for a stage that does not come
  lease.reset();
  EXPECT_NE(Take(*cache, next), nullptr);
  EXPECT_FALSE(FileExists(in_use));
}

TEST_F(ModelCacheTest, TwoLeasesOnAFileBothCount) {
  const auto cache = Open(/*budget_bytes=*/kFileBytes);
  Put(*cache, kModel, "layer-001.bin", 9);
  auto first = Take(*cache, {FileOf("layer-001.bin")});
  auto second = Take(*cache, {FileOf("layer-001.bin")});
  first.reset();
  EXPECT_FALSE(cache->Take(kModel, {FileOf("layer-002.bin")}).ok());
  second.reset();
  EXPECT_TRUE(cache->Take(kModel, {FileOf("layer-002.bin")}).ok());
}

TEST_F(ModelCacheTest, AFullDiskIsSaidBeforeAnythingComes) {
  const auto cache = Open();
  ASSERT_TRUE(cache->MakeDirectory(kModel).ok());
  const absl::Status refused =
      cache->Take(kModel, {FileOf("layer-001.bin", int64_t{1} << 60)}).status();
  EXPECT_EQ(refused.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(std::string(refused.message()),
              AllOf(HasSubstr(dir_.File("cache") + ": the disk has "),
                    HasSubstr("1048576 TiB are to come")));
}

TEST_F(ModelCacheTest, WhatOthersPutThereIsLeftAlone) {
  const auto cache = Open(/*budget_bytes=*/kFileBytes);
  const std::string heat = Put(*cache, kModel, "expert-heat-3-5.json", 9);
  ASSERT_TRUE(fs::create_directory(dir_.File("cache/mine")));
  std::ofstream(dir_.File("cache/mine/notes.bin")) << "x";
  Put(*cache, kModel, "layer-001.bin", 9);
  Take(*cache, {FileOf("layer-002.bin")});
  EXPECT_TRUE(FileExists(heat));
  EXPECT_TRUE(FileExists(dir_.File("cache/mine/notes.bin")));
}

TEST_F(ModelCacheTest, ListsWholeFilesOfTheModelOnly) {
  const auto cache = Open();
  Put(*cache, kModel, "layer-001.bin", 1);
  Put(*cache, kModel, "layer-002.bin.part", 1);
  Put(*cache, kModel, "config.json", 1);
  Put(*cache, kModel + 1, "layer-003.bin", 1);
  std::vector<std::string> names;
  for (const ShelvedFile& file : cache->List(kModel)) {
    names.push_back(file.name);
    EXPECT_EQ(file.bytes, kFileBytes);
    EXPECT_TRUE(FileExists(file.path));
  }
  EXPECT_THAT(names, ElementsAre("layer-001.bin"));
  EXPECT_TRUE(cache->List(kModel + 2).empty());
}

TEST_F(ModelCacheTest, OneProcessADirectory) {
  auto first = Open();
  const absl::Status second = ModelCache::Open({dir_.File("cache")}).status();
  EXPECT_EQ(second.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(second.message()), HasSubstr(dir_.File("cache")));
  first.reset();
  Open();
}

TEST_F(ModelCacheTest, ADirectoryThatCannotBeMadeIsNamed) {
  const std::string file = dir_.Write("file", "x");
  const absl::Status status = ModelCache::Open({file + "/cache"}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(file + "/cache"));
}

}  // namespace
}  // namespace caravan
