#include "model/text_windows.h"

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_replace.h"
#include "base/file.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/model/tokenizer_files.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

using Windows = std::vector<std::vector<int32_t>>;

std::unique_ptr<TextModel> LoadText(const std::string& directory) {
  const std::string config = std::string(kTinyDirectory) + "/config.json";
  auto text =
      TextModel::Load(directory, *ParseModelConfig(*ReadFile(config, int64_t{1} << 20), config));
  if (text.ok()) return *std::move(text);
  ADD_FAILURE() << text.status();
  return nullptr;
}

Windows AllOf(TextWindows windows) {
  Windows all;
  for (auto window = windows.Next(); !window.empty(); window = windows.Next()) {
    all.push_back(window);
  }
  EXPECT_THAT(windows.Next(), IsEmpty());
  return all;
}

TEST(TextWindowsTest, EachBeginsAsTextsDo) {
  const auto text = LoadText(kTinyDirectory);
  ASSERT_NE(text, nullptr);
  const int32_t bos = text->chat().bos_token_id();
  const std::vector<int32_t> ids = {11, 12, 13, 14, 15, 16, 17};
  EXPECT_THAT(AllOf(TextWindows(*text, ids, 4)),
              ElementsAre(ElementsAre(bos, 11, 12, 13), ElementsAre(bos, 14, 15, 16),
                          ElementsAre(bos, 17)));
  EXPECT_THAT(AllOf(TextWindows(*text, {11, 12}, 2)),
              ElementsAre(ElementsAre(bos, 11), ElementsAre(bos, 12)));
  EXPECT_THAT(AllOf(TextWindows(*text, ids, 8)),
              ElementsAre(ElementsAre(bos, 11, 12, 13, 14, 15, 16, 17)));
}

TEST(TextWindowsTest, WhatBeginsATextIsNotPutTwice) {
  const auto text = LoadText(kTinyDirectory);
  ASSERT_NE(text, nullptr);
  const int32_t bos = text->chat().bos_token_id();
  EXPECT_THAT(
      AllOf(TextWindows(*text, {bos, 11, 12, bos, 13, 14, 15}, 3)),
      ElementsAre(ElementsAre(bos, 11, 12), ElementsAre(bos, 13, 14), ElementsAre(bos, 15)));
}

TEST(TextWindowsTest, NothingIsPutBeforeTextsOfAModelTrainedWithout) {
  const TempDir dir;
  std::filesystem::copy(kTinyTokenizer, dir.File("tokenizer.json"));
  const std::string config =
      *ReadFile(std::string(kTinyDirectory) + "/tokenizer_config.json", int64_t{1} << 20);
  dir.Write("tokenizer_config.json",
            absl::StrReplaceAll(config, {{"\"add_bos_token\": true", "\"add_bos_token\": false"}}));
  const auto text = LoadText(dir.path());
  ASSERT_NE(text, nullptr);
  EXPECT_THAT(AllOf(TextWindows(*text, {11, 12, 13, 14, 15}, 3)),
              ElementsAre(ElementsAre(11, 12, 13), ElementsAre(14, 15)));
}

TEST(TextWindowsTest, AnEmptyTextHasNone) {
  const auto text = LoadText(kTinyDirectory);
  ASSERT_NE(text, nullptr);
  EXPECT_THAT(AllOf(TextWindows(*text, {}, 4)), IsEmpty());
}

}  // namespace
}  // namespace caravan
