"""What makes a process read its authentication mode and token again."""

class Config:
    @staticmethod
    def initialize(config: str, /) -> None: ...

class AuthenticationTokenLoader:
    @staticmethod
    def instance() -> AuthenticationTokenLoader: ...
    def reset_cache(self) -> None: ...
