#include "coordinator/http/access_policy.h"

#include <string>

#include "coordinator/http/http_error.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::Pair;
using ::testing::UnorderedElementsAre;

HttpRequest RequestWith(const std::string& name, const std::string& value) {
  HttpRequest request;
  request.method = "GET";
  request.path = "/v1/models";
  request.headers = {{name, value}};
  return request;
}

class ApiKeysTest : public ::testing::Test {
 protected:
  absl::StatusOr<ApiKeys> Load(const std::string& text) {
    return ApiKeys::Load(dir_.Write("keys", text));
  }
  TempDir dir_;
};

TEST_F(ApiKeysTest, AuthorizesEachKeyOfTheFileAndNothingElse) {
  const absl::StatusOr<ApiKeys> keys = Load("# for tests\n\nsk-one\r\n  sk-two  \n#sk-three\n");
  ASSERT_TRUE(keys.ok()) << keys.status();
  for (const char* good : {"Bearer sk-one", "bearer sk-two", "Bearer  sk-one "}) {
    EXPECT_TRUE(keys->Authorizes(good)) << good;
  }
  for (const char* bad : {"", "sk-one", "Bearer", "Bearer ", "Bearer sk-on", "Bearer sk-onee",
                          "Bearer #sk-three", "Bearer # for tests", "Basic sk-one"}) {
    EXPECT_FALSE(keys->Authorizes(bad)) << bad;
  }
}

TEST_F(ApiKeysTest, NamesTheFileThatIsNoKeyFileButNoKey) {
  EXPECT_THAT(Load("# nothing\n\n").status().message(), HasSubstr("keys: holds no API key"));
  const absl::Status spaced = Load("good\nhush hush\n").status();
  EXPECT_EQ(spaced.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(spaced.message(), HasSubstr("line 2"));
  EXPECT_THAT(spaced.message(), Not(HasSubstr("hush")));
  EXPECT_EQ(ApiKeys::Load(dir_.File("none")).status().code(), absl::StatusCode::kNotFound);
}

TEST_F(ApiKeysTest, WithKeysOnlyTheKeyCounts) {
  const AccessPolicy policy(*Load("sk-one"));
  EXPECT_TRUE(policy.Check(RequestWith("authorization", "Bearer sk-one")).ok());
  const absl::Status none = policy.Check(RequestWith("Host", "localhost"));
  EXPECT_EQ(HttpStatusOf(none), 401);
  EXPECT_EQ(ErrorJson(none)["error"]["code"], "invalid_api_key");
  EXPECT_THAT(none.message(), HasSubstr("Authorization: Bearer"));
  EXPECT_EQ(HttpStatusOf(policy.Check(RequestWith("Authorization", "Bearer x"))), 401);
  EXPECT_THAT(
      policy.CorsHeaders(RequestWith("Origin", "https://example.com")),
      UnorderedElementsAre(Pair("Access-Control-Allow-Origin", "*"), Pair("Vary", "Origin")));
}

TEST(AccessPolicyTest, WithoutKeysOnlyThisMachineIsServed) {
  const AccessPolicy policy(std::nullopt);
  for (const char* host : {"localhost", "localhost:8080", "LocalHost:1", "127.0.0.1:8080",
                           "127.1.2.3", "[::1]:8080", "[::1]"}) {
    EXPECT_TRUE(policy.Check(RequestWith("Host", host)).ok()) << host;
    EXPECT_TRUE(policy.Check(RequestWith("Origin", absl::StrCat("http://", host))).ok()) << host;
  }
  for (const char* host :
       {"example.com", "localhost.example.com", "127.0.0.1.example.com:80", "10.0.0.1", "[::2]",
        "[::1", "[::1]x", "null", "127.0.0.1000", "127.1"}) {
    EXPECT_EQ(HttpStatusOf(policy.Check(RequestWith("Host", host))), 403) << host;
    EXPECT_EQ(HttpStatusOf(policy.Check(RequestWith("Origin", absl::StrCat("http://", host)))), 403)
        << host;
    EXPECT_THAT(policy.CorsHeaders(RequestWith("Origin", absl::StrCat("http://", host))),
                IsEmpty());
  }
  EXPECT_THAT(policy.CorsHeaders(RequestWith("Origin", "http://localhost:3000")),
              UnorderedElementsAre(Pair("Access-Control-Allow-Origin", "http://localhost:3000"),
                                   Pair("Vary", "Origin")));
  EXPECT_THAT(policy.CorsHeaders(RequestWith("Host", "localhost")), IsEmpty());
}

TEST(HttpErrorTest, HasOpenAisShape) {
  const absl::Status status =
      WithErrorCode(WithParam(absl::InvalidArgumentError("too hot"), "temperature"), "value");
  const HttpResponse response = ErrorResponse(status);
  EXPECT_EQ(response.status, 400);
  EXPECT_EQ(response.body, R"({"error":{"code":"value","message":"too hot",)"
                           R"("param":"temperature","type":"invalid_request_error"}})");
  EXPECT_EQ(ErrorJson(absl::InternalError("x"))["error"]["param"], nullptr);
  EXPECT_EQ(ErrorJson(absl::InternalError("x"))["error"]["type"], "server_error");
  EXPECT_TRUE(WithParam(absl::OkStatus(), "x").ok());
}

TEST(HttpErrorTest, SaysWhenToTryAgain) {
  for (const absl::Status& status :
       {absl::ResourceExhaustedError("full"), absl::UnavailableError("nobody")}) {
    EXPECT_THAT(ErrorResponse(status).headers, UnorderedElementsAre(Pair("Retry-After", "1")));
  }
}

}  // namespace
}  // namespace caravan
