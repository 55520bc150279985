#include "coordinator/http/router.h"

#include <string>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace caravan {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

Router MakeRouter(std::string* called) {
  Router router;
  const auto name = [called](const std::string& text) {
    return [called, text](HttpRequest, std::shared_ptr<Responder>) { *called = text; };
  };
  router.Handle("GET", "/v1/models", name("list"));
  router.Handle("GET", "/v1/models/{...}", name("model"));
  router.Handle("POST", "/v1/batches/{}/cancel", name("cancel"));
  router.Handle("DELETE", "/v1/files/{}", name("delete"));
  router.Handle("GET", "/v1/files/{}", name("get"));
  return router;
}

class RouterTest : public ::testing::Test {
 protected:
  /// The name of the handler; empty: none.
  std::string Called(const std::string& method, const std::string& path) {
    called_.clear();
    match_ = router_.Find(method, path);
    if (match_.route != nullptr) match_.route->handler({}, nullptr);
    return called_;
  }

  std::string called_;
  const Router router_ = MakeRouter(&called_);
  Router::Match match_;
};

TEST_F(RouterTest, FindsByMethodAndPath) {
  EXPECT_EQ(Called("GET", "/v1/models"), "list");
  EXPECT_EQ(Called("DELETE", "/v1/files/f1"), "delete");
  EXPECT_EQ(Called("GET", "/v1/files/f1"), "get");
  EXPECT_EQ(Called("HEAD", "/v1/files/f1"), "get");
}

TEST_F(RouterTest, GivesWhatTheBracesMatchedDecoded) {
  EXPECT_EQ(Called("POST", "/v1/batches/a%20b%2Fc/cancel"), "cancel");
  EXPECT_THAT(match_.path_parameters, ElementsAre("a b/c"));
  EXPECT_EQ(Called("GET", "/v1/models/deepseek-ai/DeepSeek-R1"), "model");
  EXPECT_THAT(match_.path_parameters, ElementsAre("deepseek-ai/DeepSeek-R1"));
  EXPECT_EQ(Called("GET", "/v1/models/deepseek-ai%2FDeepSeek-R1"), "model");
  EXPECT_THAT(match_.path_parameters, ElementsAre("deepseek-ai/DeepSeek-R1"));
}

TEST_F(RouterTest, SaysWhichMethodsAPathHas) {
  EXPECT_EQ(Called("POST", "/v1/files/f1"), "");
  EXPECT_EQ(match_.allowed_methods, "DELETE, OPTIONS, GET, HEAD");
  for (const char* path : {"/", "", "*", "/v1", "/v1/models/", "/v1/files", "/v1/files/a/b",
                           "/v1/batches//cancel", "/v1/files/%zz", "/v1/files/%4", "//v1/models"}) {
    EXPECT_EQ(Called("GET", path), "") << path;
    EXPECT_THAT(match_.allowed_methods, IsEmpty()) << path;
  }
}

TEST(PercentDecodeTest, DecodesAndRefuses) {
  EXPECT_EQ(*PercentDecode("a%2fb%2F%00c"), std::string("a/b/\0c", 6));
  for (const char* bad : {"%", "%a", "%ag", "x%%20"}) EXPECT_FALSE(PercentDecode(bad).ok()) << bad;
}

}  // namespace
}  // namespace caravan
