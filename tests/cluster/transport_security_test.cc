#include "cluster/transport_security.h"

#include <memory>
#include <optional>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/check.h"
#include "caravan/v1/cluster.grpc.pb.h"
#include "caravan/v1/pipeline.grpc.pb.h"
#include "cluster/address.h"
#include "cluster/certificate_files.h"
#include "cluster/connection_doubt.h"
#include "cluster/grpc_channel.h"
#include "cluster/grpc_status.h"
#include "cluster/grpc_transport.h"
#include "cluster/pipeline_service.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/temp_dir.h"

namespace caravan {
namespace {

using ::testing::HasSubstr;

constexpr absl::Duration kLong = absl::Seconds(60);
constexpr uint64_t kReceiver = 7;
constexpr uint64_t kSender = 8;

/// Directories of certificates of one authority.
class Cluster {
 public:
  explicit Cluster(absl::Time now = absl::Now())
      : authority_(*MakeAuthority({now, absl::Hours(24)})) {}

  /// A directory for `identity`, anew if it is there.
  std::string Directory(const Identity& identity, absl::Duration lifetime = absl::Hours(24),
                        absl::Time now = absl::Now()) const {
    const std::string directory = dir_.File(std::string(RoleName(identity.role)) + identity.name);
    const KeyAndCertificate issued = *IssueIdentity(authority_, identity, {now, lifetime});
    CARAVAN_CHECK(MakePrivateDirectory(directory).ok());
    CARAVAN_CHECK(ReplacePrivateFile(AuthorityPath(directory), authority_.certificate_pem).ok());
    CARAVAN_CHECK(
        ReplacePrivateFile(IdentityPath(directory), issued.key_pem + issued.certificate_pem).ok());
    return directory;
  }

  TransportSecurity Security(Role role, const std::string& name = "a") const {
    auto tls = ClusterTls::Load(Directory({role, name}), absl::Now());
    CARAVAN_CHECK(tls.ok());
    return {*tls, false};
  }

 private:
  const TempDir dir_;
  const KeyAndCertificate authority_;
};

/// Answers GetStatus, and takes steps in.
class Server : public v1::Cluster::Service {
 public:
  explicit Server(const TransportSecurity& security, const SenderGate* gate = nullptr)
      : pipeline_(
            kReceiver,
            [this](v1::Step) {
              ++steps;
              return absl::OkStatus();
            },
            gate),
        server_(*StartGrpcServer("127.0.0.1:0", {this, &pipeline_}, security)) {}
  ~Server() override { ShutDownGrpcServer(*server_.server, absl::ZeroDuration()); }

  grpc::Status GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*,
                         v1::GetStatusResponse*) override {
    return grpc::Status::OK;
  }
  std::string address() const { return absl::StrCat("127.0.0.1:", server_.port); }

  std::atomic<int> steps{0};

 private:
  PipelineService pipeline_;
  const GrpcServer server_;
};

absl::Status Ask(const std::string& address, const TransportSecurity& security) {
  ChannelOptions options;
  options.security = security;
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kLong));
  v1::GetStatusResponse response;
  return FromGrpcStatus(
      v1::Cluster::NewStub(MakeGrpcChannel(address, options))->GetStatus(&context, {}, &response));
}

TEST(TransportSecurityTest, BothEndsShowWhoTheyAre) {
  const Cluster cluster;
  const Server server(cluster.Security(Role::kCoordinator));
  for (const Role role : {Role::kWorker, Role::kClient, Role::kCoordinator}) {
    const TransportSecurity caller = cluster.Security(role);
    EXPECT_TRUE(Ask(server.address(), caller).ok()) << RoleName(role);
    EXPECT_TRUE(ExplainNoConnection(server.address(), caller, kLong).ok());
  }
}

TEST(TransportSecurityTest, WhoeverIsNoCoordinatorIsNotTakenForOne) {
  const Cluster cluster;
  const Server impostor(cluster.Security(Role::kWorker, "evil"));
  const TransportSecurity caller = cluster.Security(Role::kClient);
  EXPECT_EQ(Ask(impostor.address(), caller).code(), absl::StatusCode::kUnavailable);
  const absl::Status why = ExplainNoConnection(impostor.address(), caller, kLong);
  EXPECT_EQ(why.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(why.message(), HasSubstr("a certificate of worker/evil, not of a coordinator"));
}

TEST(TransportSecurityTest, AnotherAuthoritysCertificatesAreRefusedByBothEnds) {
  const Cluster cluster;
  const Cluster other;
  const Server server(cluster.Security(Role::kCoordinator));
  const TransportSecurity stranger = other.Security(Role::kWorker);
  EXPECT_EQ(Ask(server.address(), stranger).code(), absl::StatusCode::kUnavailable);
  const absl::Status why = ExplainNoConnection(server.address(), stranger, kLong);
  EXPECT_EQ(why.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(why.message(), HasSubstr("not to be trusted by this end's ca.pem"));

  // One who has learned the authority's certificate, which is no secret, and trusts the server then
  // gets no further.
  const std::string directory = other.Directory({Role::kWorker, "sly"});
  const std::string both =
      *ReadAuthorities(directory) + *ReadAuthorities(cluster.Directory({Role::kClient, "whoever"}));
  ASSERT_TRUE(ReplacePrivateFile(AuthorityPath(directory), both).ok());
  const TransportSecurity sly = {*ClusterTls::Load(directory, absl::Now()), false};
  EXPECT_FALSE(Ask(server.address(), sly).ok());
  const absl::Status refused = ExplainNoConnection(server.address(), sly, kLong);
  EXPECT_EQ(refused.code(), absl::StatusCode::kUnauthenticated) << refused;
  EXPECT_THAT(refused.message(), HasSubstr("does not take this end's certificate"));
}

TEST(TransportSecurityTest, WhoShowsNoCertificateIsTold) {
  const Cluster cluster;
  const Server server(cluster.Security(Role::kCoordinator));
  grpc::ClientContext context;
  context.set_deadline(absl::ToChronoTime(absl::Now() + kLong));
  v1::GetStatusResponse response;
  const auto stub = v1::Cluster::NewStub(
      MakeGrpcChannel(server.address(), CredentialsWithoutIdentity(std::nullopt), 1024));
  const absl::Status status = FromGrpcStatus(stub->GetStatus(&context, {}, &response));
  EXPECT_EQ(status.code(), absl::StatusCode::kUnauthenticated);
  EXPECT_THAT(status.message(), HasSubstr("the caller shows none"));
}

TEST(TransportSecurityTest, PlainAndEncryptedEndsTellEachOtherApart) {
  const Cluster cluster;
  const Server encrypted(cluster.Security(Role::kCoordinator));
  EXPECT_FALSE(Ask(encrypted.address(), {}).ok());
  const absl::Status need = ExplainNoConnection(encrypted.address(), {}, kLong);
  EXPECT_EQ(need.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(need.message(), HasSubstr("it has certificates, and this end none"));

  const Server plain({});
  EXPECT_TRUE(Ask(plain.address(), {}).ok());
  EXPECT_TRUE(ExplainNoConnection(plain.address(), {}, kLong).ok());
  const TransportSecurity caller = cluster.Security(Role::kClient);
  EXPECT_FALSE(Ask(plain.address(), caller).ok());
  const absl::Status lacks = ExplainNoConnection(plain.address(), caller, kLong);
  EXPECT_EQ(lacks.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(lacks.message(), HasSubstr("it answers without TLS"));
}

TEST(TransportSecurityTest, WhereNobodyAnswersOneTriesOn) {
  std::string address;
  { address = Server({}).address(); }  // nobody's from now on
  EXPECT_TRUE(ExplainNoConnection(address, {}, kLong).ok());
  EXPECT_TRUE(ExplainNoConnection(address, Cluster().Security(Role::kClient), kLong).ok());
}

TEST(TransportSecurityTest, AnExpiredCertificateIsNotLoaded) {
  const Cluster cluster(absl::Now() - absl::Hours(3));
  const std::string directory =
      cluster.Directory({Role::kWorker, "old"}, absl::Hours(1), absl::Now() - absl::Hours(2));
  const absl::Status status = ClusterTls::Load(directory, absl::Now()).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(status.message(), HasSubstr("expired at"));
}

TEST(TransportSecurityTest, AnExpiredCertificateIsRefusedByTheServer) {
  const Cluster cluster(absl::Now() - absl::Hours(3));
  const Server server(cluster.Security(Role::kCoordinator));
  const std::string directory =
      cluster.Directory({Role::kWorker, "old"}, absl::Hours(1), absl::Now() - absl::Hours(2));
  // As by a caller whose clock is wrong.
  const absl::StatusOr<std::shared_ptr<const ClusterTls>> tls =
      ClusterTls::Load(directory, absl::Now() - absl::Minutes(90));
  ASSERT_TRUE(tls.ok()) << tls.status();
  EXPECT_FALSE(Ask(server.address(), {*tls, false}).ok());
}

/// Of worker `sender`, to a server that is worker b.
GrpcChannelOptions HopToB(const Cluster& cluster, const Server& server, const std::string& sender) {
  GrpcChannelOptions options;
  options.address = server.address();
  options.expected_incarnation = kReceiver;
  options.own_incarnation = kSender;
  options.security = cluster.Security(Role::kWorker, sender);
  options.expected_identity = Identity{Role::kWorker, "b"};
  return options;
}

TEST(TransportSecurityTest, AHopReachesExactlyWhomThePlanNames) {
  const Cluster cluster;
  SenderGate gate;
  gate.Expect(1, {kSender, "worker/a"});
  Server server(cluster.Security(Role::kWorker, "b"), &gate);
  GrpcChannelOptions options = HopToB(cluster, server, "a");
  {
    auto channel = OpenGrpcChannel(options);
    ASSERT_TRUE(channel.ok()) << channel.status();
    v1::Step step;
    step.set_plan_version(1);
    step.set_step_id(1);
    ASSERT_TRUE((*channel)->Send(step).ok());
    while (server.steps == 0) std::this_thread::yield();
  }
  options.connect_timeout = absl::Milliseconds(500);
  options.expected_identity = Identity{Role::kWorker, "c"};
  EXPECT_EQ(OpenGrpcChannel(options).status().code(), absl::StatusCode::kUnavailable);
}

TEST(TransportSecurityTest, StepsOfAnotherSenderAreRefused) {
  const Cluster cluster;
  SenderGate gate;
  gate.Expect(1, {kSender, "worker/a"});
  Server server(cluster.Security(Role::kWorker, "b"), &gate);
  const GrpcChannelOptions options = HopToB(cluster, server, "evil");
  auto channel = OpenGrpcChannel(options);
  ASSERT_TRUE(channel.ok()) << channel.status();
  v1::Step step;
  step.set_plan_version(1);
  absl::Status status;
  for (uint64_t id = 1; status.ok(); ++id) {
    step.set_step_id(id);
    status = (*channel)->Send(step);
  }
  EXPECT_EQ(status.code(), absl::StatusCode::kPermissionDenied);
  EXPECT_THAT(status.message(), HasSubstr("come from worker/a, not from worker/evil"));
  EXPECT_EQ(server.steps, 0);
}

TEST(TransportSecurityTest, NewFilesServeConnectionsThatComeAfter) {
  const Cluster cluster;
  const Cluster other;
  const std::string directory = cluster.Directory({Role::kCoordinator, "a"});
  const Server server({*ClusterTls::Load(directory, absl::Now()), false});
  const TransportSecurity old_caller = cluster.Security(Role::kClient);
  const TransportSecurity new_caller = other.Security(Role::kClient);
  ASSERT_TRUE(Ask(server.address(), old_caller).ok());
  ASSERT_FALSE(Ask(server.address(), new_caller).ok());

  // The other cluster's authority and certificate take their place.
  const std::string source = other.Directory({Role::kCoordinator, "a"});
  ASSERT_TRUE(ReplacePrivateFile(AuthorityPath(directory), *ReadAuthorities(source)).ok());
  ASSERT_TRUE(
      ReplacePrivateFile(IdentityPath(directory), *ReadPrivateFile(IdentityPath(source))).ok());
  const absl::Time deadline = absl::Now() + kLong;
  while (!Ask(server.address(), new_caller).ok() && absl::Now() < deadline) {
    std::this_thread::yield();
  }
  EXPECT_TRUE(Ask(server.address(), new_caller).ok());
  EXPECT_FALSE(Ask(server.address(), old_caller).ok());
}

TEST(TransportSecurityTest, ALargeAnswerEndsItsCall) {
  class Chatty : public v1::Cluster::Service {
    grpc::Status GetStatus(grpc::ServerContext*, const v1::GetStatusRequest*,
                           v1::GetStatusResponse* response) override {
      response->set_model(std::string(2048, 'x'));
      return grpc::Status::OK;
    }
  } chatty;
  const GrpcServer server = *StartGrpcServer("127.0.0.1:0", {&chatty});
  ChannelOptions options;
  options.max_receive_bytes = 1024;
  const auto stub =
      v1::Cluster::NewStub(MakeGrpcChannel(absl::StrCat("127.0.0.1:", server.port), options));
  grpc::ClientContext context;
  v1::GetStatusResponse response;
  EXPECT_EQ(FromGrpcStatus(stub->GetStatus(&context, {}, &response)).code(),
            absl::StatusCode::kResourceExhausted);
  ShutDownGrpcServer(*server.server, absl::ZeroDuration());
}

TEST(TransportSecurityTest, WithoutCertificatesOnlyLoopbackIsListenedOn) {
  for (const char* address : {"127.0.0.1:0", "127.8.9.10:1", "localhost:7070", "[::1]:7070"}) {
    EXPECT_TRUE(CheckListen(address, {}).ok()) << address;
  }
  const Cluster cluster;
  for (const char* address :
       {"0.0.0.0:0", "[::]:0", "10.0.0.1:7070", "box-a:7070", "127.0.0.1.example.org:7070"}) {
    const absl::Status status = CheckListen(address, {});
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << address;
    EXPECT_THAT(status.message(), HasSubstr("give --certs DIRECTORY"));
    EXPECT_TRUE(CheckListen(address, {nullptr, /*insecure=*/true}).ok()) << address;
    EXPECT_TRUE(CheckListen(address, cluster.Security(Role::kWorker)).ok()) << address;
  }
  EXPECT_EQ(CheckListen("garbage", {}).code(), absl::StatusCode::kInvalidArgument);
  v1::Cluster::Service service;
  EXPECT_EQ(StartGrpcServer("0.0.0.0:0", {&service}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST(TransportSecurityTest, ACertificateWithSeveralNamesIsTheFirstOfTheCluster) {
  EXPECT_TRUE(
      CheckPeer({"https://example.org", "caravan://cluster/coordinator/a"}, std::nullopt).ok());
  EXPECT_FALSE(
      CheckPeer({"caravan://cluster/worker/a", "caravan://cluster/coordinator/a"}, std::nullopt)
          .ok());
  EXPECT_THAT(CheckPeer({}, std::nullopt).message(), HasSubstr("nobody in a cluster"));
}

}  // namespace
}  // namespace caravan
