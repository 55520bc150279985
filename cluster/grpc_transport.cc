#include "cluster/grpc_transport.h"

#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>

#include "grpcpp/support/server_interceptor.h"
#endif

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "base/status_macros.h"
#include "cluster/address.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "grpcpp/security/server_credentials.h"
#include "grpcpp/support/channel_arguments.h"

namespace caravan {
namespace {

// Between tries to connect, from the first on and at most.
constexpr absl::Duration kFirstRetry = absl::Milliseconds(100);
constexpr absl::Duration kLastRetry = absl::Seconds(1);

int Milliseconds(absl::Duration duration) {
  return static_cast<int>(absl::ToInt64Milliseconds(duration));
}

#if defined(__SANITIZE_THREAD__)

// ThreadSanitizer does not see the locks by which Shutdown waits for handlers: tell it.
char handlers_ended;

/// Lives as long as a call on the server's side.
class ServedCall : public grpc::experimental::Interceptor {
 public:
  ~ServedCall() override { __tsan_release(&handlers_ended); }
  void Intercept(grpc::experimental::InterceptorBatchMethods* methods) override {
    methods->Proceed();
  }
};

class ServedCallFactory : public grpc::experimental::ServerInterceptorFactoryInterface {
 public:
  grpc::experimental::Interceptor* CreateServerInterceptor(
      grpc::experimental::ServerRpcInfo* /*call*/) override {
    return new ServedCall;
  }
};

void WatchHandlers(grpc::ServerBuilder& builder) {
  std::vector<std::unique_ptr<grpc::experimental::ServerInterceptorFactoryInterface>> factories;
  factories.push_back(std::make_unique<ServedCallFactory>());
  builder.experimental().SetInterceptorCreators(std::move(factories));
}

void SeeHandlersEnd() { __tsan_acquire(&handlers_ended); }

#else

void WatchHandlers(grpc::ServerBuilder& /*builder*/) {}
void SeeHandlersEnd() {}

#endif

}  // namespace

std::shared_ptr<grpc::Channel> MakeGrpcChannel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetMaxSendMessageSize(kMaxStepBytes);
  arguments.SetMaxReceiveMessageSize(kMaxStepBytes);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(kKeepaliveInterval));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(kKeepaliveTimeout));
  arguments.SetInt(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  arguments.SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);  // no limit: an idle pipeline is fine
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // A repeated step would be a second one; besides, retries keep copies of what was sent.
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  // Whoever waits for a coordinator that comes back is there within about a second of it.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, Milliseconds(kFirstRetry));
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, Milliseconds(kLastRetry));
  // Otherwise two channels to one address share a connection, and so its flow control and its end.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

void ConfigureGrpcServer(grpc::ServerBuilder& builder) {
  builder.SetMaxSendMessageSize(kMaxStepBytes);
  builder.SetMaxReceiveMessageSize(kMaxStepBytes);
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, Milliseconds(kKeepaliveInterval));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, Milliseconds(kKeepaliveTimeout));
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
  // By default a server hangs up on a client that pings more often than every five minutes.
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
                             Milliseconds(kKeepaliveInterval / 2));
  builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
  builder.AddChannelArgument(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 0);
  // A second server on the same port must fail to start, not take half of the connections.
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  WatchHandlers(builder);
}

absl::StatusOr<GrpcServer> StartGrpcServer(const std::string& address,
                                           const std::vector<grpc::Service*>& services) {
  CARAVAN_RETURN_IF_ERROR(CheckAddress(address, /*min_port=*/0));
  grpc::ServerBuilder builder;
  ConfigureGrpcServer(builder);
  GrpcServer started;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials(), &started.port);
  for (grpc::Service* service : services) builder.RegisterService(service);
  started.server = builder.BuildAndStart();
  if (started.server == nullptr || started.port == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "cannot listen on ", address, ": the address is in use or not this machine's"));
  }
  return started;
}

void ShutDownGrpcServer(grpc::Server& server, absl::Duration grace) {
  server.Shutdown(absl::ToChronoTime(absl::Now() + grace));
  SeeHandlersEnd();
}

}  // namespace caravan
